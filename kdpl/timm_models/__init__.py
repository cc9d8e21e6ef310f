"""Networks of timm as students: ``timm:NAME``."""
