"""Scripts, a notebook and a plugin, all of which a test runs."""
