"""Shards (tar archives or Parquet files) as a pool of images, and for classification."""
