"""Survey of a user's images, for ``init`` to write a config."""
