"""The progress bar of a fit, instead of Lightning's own."""
