"""Shards, which are tar archives or Parquet files, as a pool of images, and to be classified."""
