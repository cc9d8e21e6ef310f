"""Datasets as tables: a CSV or Parquet file with a row for each image."""
