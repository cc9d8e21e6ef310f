"""Saving a test's predictions, logits and accuracies, gathered over all processes."""

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
        self._rows: list[tuple[int, int, int, float]] = []
        self._sketches: list[LogitSketch] = []
        self._metrics: dict[str, float] | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self._rows, self._sketches, self._metrics = [], [], None

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Keep index, label, prediction, its probability and the sketch of the logits of each image."""
        top = outputs["logits"].softmax(dim=1).max(dim=1)
        columns = (outputs["indices"], outputs["labels"], top.indices, top.values)
        self._rows += zip(*(c.tolist() for c in columns), strict=True)
        self._sketches.append(LogitSketch.of(outputs["logits"].cpu()))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather and write the predictions."""
        rows = _gather(self._rows, trainer.world_size)
        values: list[Tensor] = _gather([s.values for s in self._sketches], trainer.world_size)
        if trainer.is_global_zero:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            folder = Path(trainer.default_root_dir)
            names, records = data.class_names, data.test_records
            predictions = [ImagePrediction(i, records[i].source, names[y], names[p], q, y, p) for i, y, p, q in rows]
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


def _gather(rows: list[Any], processes: int) -> list[Any]:
    if processes == 1:
        return rows
    parts: list[list[Any]] = [[] for _ in range(processes)]
    torch.distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]
