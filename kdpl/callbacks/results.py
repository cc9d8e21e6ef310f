"""Saves predictions and accuracies of a test, gathered over all processes."""

from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from typing import TypeVar, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from kdpl.callbacks.loggers.pictures import log_test
from kdpl.classifier.card import state_accuracies
from kdpl.data.domain import domain_of
from kdpl.metrics import test_key
from kdpl.module import ClassifyingModule, EvalOutput
from kdpl.runtime.predictions import (
    ImagePrediction,
    read_estimate,
    write_predictions,
    write_results,
)
from kdpl.runtime.run_folder import STAGE_FOLDERS

RowT = TypeVar("RowT")

LOGGED_IMAGES = 64


class SaveTestResults(Callback):
    """Writes each test image's prediction, and the accuracies, into the run's folder.

    The accuracies mark a finished test, so they are written last, after all other callbacks have
    used the predictions. A callback for several labels per image writes its own.

    Args:
        logged_images: Number of images that loggers show next to the confusion matrix.
    """

    _metrics: dict[str, float] | None = None  # of a test that has ended

    def __init__(self, logged_images: int = LOGGED_IMAGES) -> None:
        self._logged_images = logged_images

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin without the images of an earlier test."""
        self._rows: list[tuple[int, int, int, float, int | None]] = []
        self._images, self._metrics = 0, None

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, *_: object
    ) -> None:
        """Keep index, label, predictions and probability of each image."""
        evaluated = cast(EvalOutput, outputs)
        logits, labels = evaluated["logits"], evaluated["labels"]
        num_base, task = domain_of(trainer).num_base, cast(ClassifyingModule, pl_module).task
        self._images += len(labels)
        if task.per_class:
            return
        probability, predicted = task.probabilities(logits).max(dim=1)
        columns = (c.tolist() for c in (evaluated["indices"], labels, predicted, probability))
        half: Iterable[int | None] = repeat(None, len(labels))
        if num_base is not None:
            half = task.labels(_within_half(logits, labels, num_base)).tolist()
        self._rows += zip(*columns, half, strict=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather and write the predictions."""
        rows = gather(self._rows, trainer.world_size)
        images = sum(gather([self._images], trainer.world_size))
        if trainer.is_global_zero:
            data = domain_of(trainer)
            names, records = data.class_names, data.splits.test
            self._predictions = [
                ImagePrediction(i, records[i].source, names[y], names[p], q, y, p, half)
                for i, y, p, q, half in rows
            ]
            metrics = {
                name: float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith(test_key(""))
            }
            if data.splits.held_out:
                metrics["held_out"] = True
            if not cast(ClassifyingModule, pl_module).task.per_class:
                write_predictions(Path(trainer.default_root_dir), self._predictions)
            self._images, self._metrics = images, metrics

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the accuracies, and log pictures; not reached if another callback failed."""
        if self._metrics is None:
            return
        folder = Path(trainer.default_root_dir)
        write_results(folder, self._images, self._metrics)
        state_accuracies(folder)
        self._metrics = None
        log_test(
            trainer.loggers,
            self._predictions,
            domain_of(trainer),
            self._logged_images,
            _expected(folder),
            trainer.global_step,
        )


def _within_half(logits: Tensor, labels: Tensor, num_base: int) -> Tensor:
    """Mask the logits of each image to the half, base or novel classes, that has its label."""
    is_base = torch.arange(logits.shape[1], device=logits.device) < num_base
    return logits.masked_fill(is_base != (labels < num_base).unsqueeze(1), -torch.inf)


def _expected(folder: Path) -> dict[str, float]:
    # an estimate expects something of a student alone
    estimate = read_estimate(folder.parent) if folder.name == STAGE_FOLDERS[-1] else None
    if estimate is None:
        return {}
    value, low, high = estimate
    return {"estimate/acc": value, "estimate/acc_low": low, "estimate/acc_high": high}


def gather(rows: list[RowT], processes: int) -> list[RowT]:
    """Return the rows of all processes in their order; called on all processes."""
    if processes == 1:
        return rows
    parts: list[list[RowT]] = [[] for _ in range(processes)]
    torch.distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]
