"""Draws of images that have several labels, or of which groups belong together."""
