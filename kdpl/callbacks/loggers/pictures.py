"""Confusion matrix and images of a test, in those loggers of a run that show pictures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image, ImageDraw, ImageOps

from kdpl.data.datamodule import DomainDataModule
from kdpl.runtime.class_names import shorten
from kdpl.runtime.predictions import ImagePrediction

MATRIX = "test/confusion_matrix"
"""Key of the confusion matrix."""

PREDICTIONS = "test/predictions"
"""Key of the images with their predictions."""

MATRIX_CLASSES = 100
"""Largest number of classes with a confusion matrix: W&B draws 10,000 cells."""

_EDGE = 160
_LINE = 14
_CELL = 28
_NAMES = 200
_BLACK, _RED = "black", "firebrick"


def log_test(
    loggers: Iterable[Logger],
    predictions: Sequence[ImagePrediction],
    data: DomainDataModule,
    images: int,
    expected: Mapping[str, float],
    step: int,
) -> None:
    """Log a test to W&B, TensorBoard and MLflow; called on one process.

    Of the predictions, ``images`` are shown with their image: the most certain wrong ones first,
    then the least certain right ones. ``expected`` has further values to log.
    """
    kinds = (WandbLogger, TensorBoardLogger, MLFlowLogger)
    able = [logger for logger in loggers if isinstance(logger, kinds)]
    if not able:
        return
    order = sorted(predictions, key=lambda p: p.probability if p.correct else -p.probability)
    shown = sorted(order, key=lambda p: p.correct)[:images]
    small = [_scaled(data.splits.open_image(p.source)) for p in shown]
    class_names = data.class_names
    readable = len(predictions) > 0 and len(class_names) <= MATRIX_CLASSES
    for logger in able:
        if expected:
            logger.log_metrics({**expected}, step)
        if isinstance(logger, WandbLogger):
            values = _wandb_matrix(predictions, class_names) if readable else {}
            values |= _wandb_table(shown, small) if shown else {}
            if values:
                logger.experiment.log({**values, "trainer/global_step": step})
            continue
        pictures = {MATRIX: draw_matrix(predictions, class_names)} if readable else {}
        pictures |= {PREDICTIONS: draw_sheet(shown, small)} if shown else {}
        for key, picture in pictures.items():
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(key, np.asarray(picture), step, dataformats="HWC")
            else:
                logger.experiment.log_image(logger.run_id, picture, artifact_file=f"{key}.png")


def _scaled(image: Image.Image) -> Image.Image:
    width, height = (max(1, round(_EDGE * edge / max(image.size))) for edge in image.size)
    return image.convert("RGB").resize((width, height))


def _wandb_matrix(
    predictions: Sequence[ImagePrediction], class_names: Sequence[str]
) -> dict[str, Any]:
    import wandb

    matrix = wandb.plot.confusion_matrix(
        y_true=[p.label_number for p in predictions],
        preds=[p.prediction_number for p in predictions],
        class_names=class_names,
        title="Confusion matrix of the test images",
    )
    return {MATRIX: matrix}


def _wandb_table(shown: Sequence[ImagePrediction], small: Sequence[Image.Image]) -> dict[str, Any]:
    import wandb

    columns: list[str | int] = ["image", "label", "prediction", "probability", "correct", "source"]
    rows = [
        [wandb.Image(image), p.label, p.prediction, p.probability, p.correct, p.source]
        for p, image in zip(shown, small, strict=True)
    ]
    return {PREDICTIONS: wandb.Table(columns=columns, data=rows)}


def draw_matrix(predictions: Sequence[ImagePrediction], class_names: Sequence[str]) -> Image.Image:
    """Draw counts by true class, a row each, and predicted class; darker for larger shares."""
    size = len(class_names)
    counts = np.zeros((size, size), dtype=int)
    for p in predictions:
        counts[p.label_number, p.prediction_number] += 1
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    cells = Image.fromarray((255 * shares).astype(np.uint8))
    cells = cells.resize((size * _CELL, size * _CELL), Image.Resampling.NEAREST)
    page = Image.new("RGB", (_NAMES + size * _CELL, (size + 1) * _CELL), "white")
    page.paste(ImageOps.colorize(cells, "white", "steelblue"), (_NAMES, _CELL))
    draw = ImageDraw.Draw(page)
    for i, name in enumerate(class_names):
        middle = (i + 0.5) * _CELL
        draw.text((4, middle + _CELL), f"{i} {shorten(name, 28)}", _BLACK, anchor="lm")
        draw.text((_NAMES + middle, _CELL / 2), str(i), _BLACK, anchor="mm")
    for i, j in np.argwhere(counts):
        at = (_NAMES + (j + 0.5) * _CELL, (i + 1.5) * _CELL)
        draw.text(at, str(counts[i, j]), _BLACK, anchor="mm")
    return page


def draw_sheet(shown: Sequence[ImagePrediction], small: Sequence[Image.Image]) -> Image.Image:
    """Draw images in rows of eight, each above its label and its prediction, red if wrong."""
    columns = min(8, len(shown))
    rows, height = -(-len(shown) // columns), _EDGE + 2 * _LINE + 4
    page = Image.new("RGB", (columns * _EDGE, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for number, (p, image) in enumerate(zip(shown, small, strict=True)):
        x, y = number % columns * _EDGE, number // columns * height
        page.paste(image, (x, y))
        draw.text((x, y + _EDGE), shorten(p.label, 24), _BLACK)
        caption = f"{p.probability:.0%} {shorten(p.prediction, 20)}"
        draw.text((x, y + _EDGE + _LINE), caption, _BLACK if p.correct else _RED)
    return page
