"""Prediction on batches of columns, for engines such as Ray Data, Daft and Spark."""

import threading
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import torch

from kdpl.classifier import Precision, PredictOptions
from kdpl.classifier.bulk import BulkPrediction, load_classifier
from kdpl.classifier.sources import Item
from kdpl.classifier.tables import arrow_schema
from kdpl.errors import ConfigError
from kdpl.runtime.optional import optional
from kdpl.tasks import DecisionRule

# one pixel to pad batches, since processors round products of few rows differently
_BLANK = Item("", b"P6 1 1 255 \0\0\0")

# an engine may call from several threads, but precision and torch's threads are global
_ONE_AT_A_TIME = threading.Lock()


@dataclass
class BatchPredictor:
    """Classifies batches of rows, as an engine for distributed data calls it.

    The classifier is loaded on first use, once in each process that this object is sent to.

    Args:
        classifier: Folder of a classifier, visible on each machine.
        top_k: Number of classes per image.
        batch_size: Images per forward pass. Batches of the engine are padded to a multiple of it,
            so a prediction does not depend on how rows are grouped.
        workers: Threads that decode and classify; 1, since engines run a process for each core.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.
        precision: Arithmetic of the image tower.
        rule: Thresholds of the decision, such as from ``kdpl.confidence.decision_rule``.
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
        self._options()  # validates them

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
            batch: Columns accepted by ``pyarrow.table``: a mapping to NumPy or Arrow arrays, an
                Arrow table, a DataFrame of pandas. The image is in ``bytes``, or, if missing or
                null, in the file or URL ``path``.

        Returns:
            A ``pyarrow.Table`` with a row for each, in order: the columns of ``schema``, and the
            other columns of the batch except ``path`` and ``bytes``, unchanged. For an unreadable
            image ``error`` has the reason.

        Raises:
            ConfigError: The batch has neither column, or a column of predictions.
        """
        # the batch has images, and no column of predictions
        arrow = optional("pyarrow", "a BatchPredictor", "parquet")
        table = arrow.table(batch)
        schema, other_columns = self.schema, {*table.column_names} - {"path", "bytes"}
        if len(other_columns) == table.num_columns or other_columns & {*schema.names}:
            raise ConfigError(
                f"the batch has the columns {', '.join(table.column_names) or 'none'}, expected "
                f"path or bytes, and none of predictions ({', '.join(schema.names)}): rename them"
            )

        # classify the images
        paths, contents = (
            table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
            for name in ("path", "bytes")
        )
        rows = self._rows([*map(_item, paths, contents)])
        for row, path in zip(rows, paths, strict=True):
            row["path"] = None if path is None else str(path)

        # append the other columns in their order
        predicted = arrow.Table.from_pylist(rows, schema=schema)
        for name in filter(other_columns.__contains__, table.column_names):
            predicted = predicted.append_column(table.schema.field(name), table[name])
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
