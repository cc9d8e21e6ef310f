"""Images that a fit leaves out: those of a list, those that cannot be used, and copies."""
