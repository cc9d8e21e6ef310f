"""Images that a fit leaves out: listed images, images that cannot be used, and copies."""
