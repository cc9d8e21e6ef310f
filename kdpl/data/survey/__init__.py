"""Survey of the user's own images, which writes a config for them: ``init``."""
