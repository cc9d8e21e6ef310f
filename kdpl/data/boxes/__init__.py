"""Boxes of a detector as images: crops as a pool, as labelled images, and to classify."""
