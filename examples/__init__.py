"""Scripts, a notebook and classes of a project of its own, all of which a test runs."""
