"""Image-text models by address: ``hf-hub:`` and ``local-dir:`` of open_clip, and ``hf:``."""
