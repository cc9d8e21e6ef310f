"""Prediction on batches of columns, for engines such as Ray Data, Daft and Spark."""

import threading
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import torch

from kdpl.classifier import Precision, PredictOptions
from kdpl.classifier.bulk import BulkPrediction, load_classifier
from kdpl.classifier.engines.parquet import arrow_schema
from kdpl.classifier.sources import Item
from kdpl.errors import ConfigError
from kdpl.runtime.optional import optional
from kdpl.tasks import DecisionRule

# a pixel: fills up batches, since processors round products of few rows in another way
_BLANK = Item("", b"P6 1 1 255 \0\0\0")

# an engine may call from several threads, and precision and torch's threads belong to the process
_ONE_AT_A_TIME = threading.Lock()


@dataclass
class BatchPredictor:
    """Classifies batches of rows, as an engine for distributed data calls it.

    The classifier is loaded on first use, once in each process that this object is sent to.

    Args:
        classifier: Folder of a classifier, which each machine has to see.
        top_k: Classes for each image.
        batch_size: Images that go through the network at once. Batches of the engine are filled up
            to a multiple of it, so that a prediction does not depend on how rows are grouped.
        workers: Threads that decode and classify; 1, since engines run a process for each core.
        device: ``cpu``, ``cuda``, or ``auto``, which is a GPU if there is one.
        precision: Arithmetic of the image tower.
        rule: Which classes are named, such as one of ``kdpl.confidence.decision_rule``.
        embeddings: Adds the column ``embedding``, the encoder's features.
    """

    classifier: str
    top_k: int = 1
    batch_size: int = 64
    workers: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Precision = "32-true"
    rule: DecisionRule = DecisionRule()
    embeddings: bool = False

    def __post_init__(self) -> None:
        self._options()  # refuses bad ones at once

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_bulk"}

    @cached_property
    def _bulk(self) -> BulkPrediction:
        loaded = load_classifier(self.classifier, None, self.device)
        return BulkPrediction(loaded, (), self._options(), self.embeddings)

    def _options(self) -> PredictOptions:
        return PredictOptions(self.top_k, self.batch_size, self.workers, self.precision, self.rule)

    @property
    def schema(self) -> Any:
        """The columns of ``predict`` with these options, a ``pyarrow.Schema``."""
        return arrow_schema(self._bulk.columns)

    def __call__(self, batch: Any) -> Any:
        """Classify the images of a batch.

        Args:
            batch: Columns as ``pyarrow.table`` takes them: a mapping to NumPy or Arrow arrays, an
                Arrow table, a DataFrame of pandas. The image is in ``bytes``, or, where that is
                missing or null, in the file or URL ``path``.

        Returns:
            A ``pyarrow.Table`` with a row for each, in order: the columns of ``schema``, and those
            of the batch besides ``path`` and ``bytes``, unchanged. An image that cannot be read has
            the reason in ``error``.

        Raises:
            ConfigError: The batch has neither column, or one that predictions have as well.
        """
        arrow = optional("pyarrow", "a BatchPredictor", "parquet")
        given = arrow.table(batch)
        schema, others = self.schema, {*given.column_names} - {"path", "bytes"}
        if len(others) == given.num_columns or others & {*schema.names}:
            raise ConfigError(
                f"the batch has the columns {', '.join(given.column_names) or 'none'}, expected "
                f"path or bytes, and none of predictions ({', '.join(schema.names)}): rename them"
            )
        paths, contents = (
            given[name].to_pylist() if name in given.column_names else [None] * given.num_rows
            for name in ("path", "bytes")
        )
        rows = self._rows([*map(_item, paths, contents)])
        for row, path in zip(rows, paths, strict=True):
            row["path"] = None if path is None else str(path)
        predicted = arrow.Table.from_pylist(rows, schema=schema)
        for name in filter(others.__contains__, given.column_names):
            predicted = predicted.append_column(given.schema.field(name), given[name])
        return predicted

    def _rows(self, items: list[Item]) -> list[dict[str, Any]]:
        filled = items + [_BLANK] * (-len(items) % self.batch_size)
        with _ONE_AT_A_TIME:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return list(islice([*self._bulk.rows_of(filled)], len(items)))
            finally:
                torch.set_num_threads(threads)


def _item(path: str | None, content: bytes | None) -> Item:
    if content is not None:
        return Item(path or "without a path", content)
    if not path:
        return Item("", error="the row has neither path nor bytes: fill in one of them")
    return Item(str(path).removeprefix("file://"))
