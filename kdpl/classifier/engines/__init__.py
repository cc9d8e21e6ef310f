"""Arrow tables of predictions: Parquet files, and batches for Ray Data, Daft and Spark."""

from typing import TYPE_CHECKING

from kdpl.runtime.lazy import lazily

if TYPE_CHECKING:
    from kdpl.classifier.engines.batch import BatchPredictor

__all__ = ["BatchPredictor"]

__getattr__ = lazily(__name__, {"BatchPredictor": "batch"})
