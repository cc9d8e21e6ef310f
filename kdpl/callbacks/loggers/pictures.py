"""Confusion matrix and images of a test in W&B, and what was expected of it in all loggers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from kdpl.data.datamodule import DomainDataModule
from kdpl.runtime.loggers import MetricsCSV
from kdpl.runtime.predictions import ImagePrediction

MATRIX = "test/confusion_matrix"
"""Key of the confusion matrix."""

PREDICTIONS = "test/predictions"
"""Key of the images with their predictions."""

MATRIX_CLASSES = 100
"""Largest number of classes with a confusion matrix: W&B draws 10,000 cells."""

_EDGE = 160


def log_test(
    loggers: Iterable[Logger],
    predictions: Sequence[ImagePrediction],
    data: DomainDataModule,
    images: int,
    expected: Mapping[str, float],
    step: int,
) -> None:
    """Log what of a test is no metric; called on one process.

    Of the predictions, W&B shows ``images`` with their image: the most certain wrong ones first,
    then the least certain right ones. ``expected`` has further values, for all loggers but CSV.
    """
    for logger in loggers:
        if expected and not isinstance(logger, MetricsCSV):
            logger.log_metrics({**expected}, step)
        if isinstance(logger, WandbLogger) and predictions:
            values = {"trainer/global_step": step, **_table(predictions, data, images)}
            if len(data.class_names) <= MATRIX_CLASSES:
                values |= _matrix(predictions, data.class_names)
            logger.experiment.log(values)


def _matrix(predictions: Sequence[ImagePrediction], class_names: Sequence[str]) -> dict[str, Any]:
    import wandb

    matrix = wandb.plot.confusion_matrix(
        y_true=[p.label_number for p in predictions],
        preds=[p.prediction_number for p in predictions],
        class_names=class_names,
        title="Confusion matrix of the test images",
    )
    return {MATRIX: matrix}


def _table(
    predictions: Sequence[ImagePrediction], data: DomainDataModule, images: int
) -> dict[str, Any]:
    import wandb

    order = sorted(predictions, key=lambda p: p.probability if p.correct else -p.probability)
    shown = sorted(order, key=lambda p: p.correct)[:images]
    columns: list[str | int] = ["image", "label", "prediction", "probability", "correct", "source"]
    rows = []
    for p in shown:
        image = data.splits.open_image(p.source).convert("RGB")
        image.thumbnail((_EDGE, _EDGE))
        rows.append([wandb.Image(image), p.label, p.prediction, p.probability, p.correct, p.source])
    return {PREDICTIONS: wandb.Table(columns=columns, data=rows)} if rows else {}
