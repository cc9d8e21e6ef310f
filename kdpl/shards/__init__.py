"""Tar shards (WebDataset format) as a pool of unlabelled images, and as images to classify."""
