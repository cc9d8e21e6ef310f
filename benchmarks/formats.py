"""Exported files of a classifier in every format, beside the classifier in torch."""

from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.distillation import begun_student
from benchmarks.settings import Settings
from benchmarks.teacher import RandomTeacher
from kdpl.classifier.formats import formats

TORCH = "Classifier in torch"

_CALIBRATION_IMAGES = 8


def format_sides(settings: Settings, folder: Path) -> dict[str, Callable[[], object]]:
    """Write a classifier in all formats; returns for each, and for torch, what classifies one batch of random images.

    Weights are random. Images are in memory, at the size of the network. The runtimes choose their
    threads themselves, one for each core that the process may use.
    """
    sizes = settings.sizes
    classifier = begun_student(sizes, sizes.names(sizes.few), RandomTeacher(sizes)).classifier()
    size = classifier.preprocessing.image_size
    images = torch.randint(256, (settings.batch_size, 3, size, size), dtype=torch.uint8)
    sides: dict[str, Callable[[], object]] = {TORCH: lambda: classifier(images)}
    for name, kind in formats().items():
        path = folder / f"{name}{kind.ending}"
        kind.write(
            classifier,
            "uint8",
            path,
            *([images[:_CALIBRATION_IMAGES]] if name == "onnx-int8" else []),
        )
        run = kind.load(path)
        sides[name] = lambda run=run: run(images)  # type: ignore[misc]
    return {name: torch.inference_mode()(side) for name, side in sides.items()}
