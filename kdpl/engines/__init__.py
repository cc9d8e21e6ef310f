"""Prediction in engines for distributed data, such as Ray Data, Daft and Spark."""

from kdpl.engines.batch import BatchPredictor

__all__ = ["BatchPredictor"]
