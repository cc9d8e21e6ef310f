"""A look at images of one's own, which writes a config for them: ``init``."""
