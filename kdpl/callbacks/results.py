"""Saving a test's predictions, logits and accuracies, gathered over all processes."""

from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.runtime.logit_sketch import LogitSketch
from kdpl.runtime.predictions import ImagePrediction, write_predictions, write_results


class SaveTestResults(Callback):
    """Writes each test image's prediction, a sketch of its logits, and the accuracies into the run's folder.

    The accuracies mark a finished test, and so are written last, after all other callbacks used the predictions.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, float, int | None]] = []
        self._sketches: list[LogitSketch] = []
        self._metrics: dict[str, float] | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self._rows, self._sketches, self._metrics = [], [], None

    def on_test_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Keep index, label, predictions, probability and the sketch of the logits of each image."""
        logits, labels = outputs["logits"], outputs["labels"]
        num_base = getattr(trainer.datamodule, "num_base", None)  # type: ignore[attr-defined]
        task = pl_module.task
        probability, predicted = task.probabilities(logits).max(dim=1)
        columns = (c.tolist() for c in (outputs["indices"], labels, predicted, probability))
        half: Iterable[int | None] = repeat(None, len(labels))
        if num_base is not None:
            half = task.labels(_within_half(logits, labels, num_base)).tolist()
        self._rows += zip(*columns, half, strict=True)
        self._sketches.append(LogitSketch.of(logits.cpu()))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather and write the predictions."""
        rows = gather(self._rows, trainer.world_size)
        values: list[Tensor] = gather([s.values for s in self._sketches], trainer.world_size)
        if trainer.is_global_zero:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            folder = Path(trainer.default_root_dir)
            names, records = data.class_names, data.test_records
            predictions = [
                ImagePrediction(i, records[i].source, names[y], names[p], q, y, p, half) for i, y, p, q, half in rows
            ]
            metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("test/")}
            if values:
                order = torch.tensor([row[0] for row in rows]).argsort()
                LogitSketch(torch.cat(values)[order], self._sketches[0].counts).save(folder)
            if getattr(data, "held_out", False):
                metrics["held_out"] = True
            write_predictions(folder, predictions)
            self._rows, self._metrics = rows, metrics

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the accuracies; not reached if another callback failed."""
        if self._metrics is not None:
            write_results(Path(trainer.default_root_dir), len(self._rows), self._metrics)
            self._metrics = None


def _within_half(logits: Tensor, labels: Tensor, num_base: int) -> Tensor:
    """Leave each image the logits of the base or of the novel classes, those that its label is among."""
    is_base = torch.arange(logits.shape[1], device=logits.device) < num_base
    return logits.masked_fill(is_base != (labels < num_base).unsqueeze(1), -torch.inf)


def gather(rows: list[Any], processes: int) -> list[Any]:
    """Return the rows of all processes, those of the first one first; called on all of them."""
    if processes == 1:
        return rows
    parts: list[list[Any]] = [[] for _ in range(processes)]
    torch.distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]
