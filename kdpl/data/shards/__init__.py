"""Shards (tar archives and Parquet files) as a pool of images, and for classification."""
