"""Shards (tar archives) as a pool of images, and for classification."""
