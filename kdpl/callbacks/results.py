"""Saves predictions and accuracies of a test, gathered over all processes."""

from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from typing import TypeVar, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from kdpl.data.domain import domain_of
from kdpl.metrics import test_key
from kdpl.module import ClassifyingModule, EvalOutput
from kdpl.runtime.predictions import ImagePrediction, write_predictions, write_results

RowT = TypeVar("RowT")


class SaveTestResults(Callback):
    """Writes each test image's prediction, and the accuracies, into the run's folder.

    The accuracies mark a finished test, so they are written last, after all other callbacks have
    used the predictions. The plugin of several labels per image writes its predictions itself.
    """

    _metrics: dict[str, float] | None = None  # of a test that has ended

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin without the images of an earlier test."""
        self._rows: list[tuple[int, int, int, float, int | None]] = []
        self._images, self._metrics = 0, None

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, *_: object
    ) -> None:
        """Keep index, label, predictions and probability of each image."""
        # over all classes
        evaluated = cast(EvalOutput, outputs)
        logits, labels = evaluated["logits"], evaluated["labels"]
        num_base, task = domain_of(trainer).num_base, cast(ClassifyingModule, pl_module).task
        self._images += len(labels)
        if task.per_class:
            return
        probability, predicted = task.probabilities(logits).max(dim=1)
        columns = (c.tolist() for c in (evaluated["indices"], labels, predicted, probability))
        # within the base or novel classes of the label
        half: Iterable[int | None] = repeat(None, len(labels))
        if num_base is not None:
            half = task.labels(_within_half(logits, labels, num_base)).tolist()
        self._rows += zip(*columns, half, strict=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather and write the predictions."""
        rows = gather(self._rows, trainer.world_size)
        images = sum(gather([self._images], trainer.world_size))
        if trainer.is_global_zero:
            # name images and classes
            data = domain_of(trainer)
            names, records = data.class_names, data.splits.test
            predictions = [
                ImagePrediction(i, records[i].source, names[y], names[p], q, y, p, half)
                for i, y, p, q, half in rows
            ]
            # the accuracies, for teardown
            metrics = {
                name: float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith(test_key(""))
            }
            if data.splits.held_out:
                metrics["held_out"] = True
            if not cast(ClassifyingModule, pl_module).task.per_class:
                write_predictions(Path(trainer.default_root_dir), predictions)
            self._images, self._metrics = images, metrics

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the accuracies; not reached if another callback failed."""
        if self._metrics is not None:
            write_results(Path(trainer.default_root_dir), self._images, self._metrics)
            self._metrics = None


def _within_half(logits: Tensor, labels: Tensor, num_base: int) -> Tensor:
    """Mask the logits of each image to the half, base or novel classes, that has its label."""
    is_base = torch.arange(logits.shape[1], device=logits.device) < num_base
    return logits.masked_fill(is_base != (labels < num_base).unsqueeze(1), -torch.inf)


def gather(rows: list[RowT], processes: int) -> list[RowT]:
    """Return the rows of all processes in their order; called on all processes."""
    if processes == 1:
        return rows
    parts: list[list[RowT]] = [[] for _ in range(processes)]
    torch.distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]
