"""A look at all images before a fit: which cannot be used, and which are copies of test images."""
