"""Suggestions of images to label next, and of labels that look wrong."""
