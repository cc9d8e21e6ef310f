"""Further formats of exported files: how each is written and run."""
