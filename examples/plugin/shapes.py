"""Classes of a project of its own, which configs name by class path.

Usage: ``PYTHONPATH=examples/plugin python -m kdpl fit --config examples/plugin/shapes.yaml …``
"""

from functools import partial

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw
from torch.nn import functional as F

from kdpl.clip import register_model
from kdpl.clip.miniatures.models import CONFIGS, packaged_weights
from kdpl.data.splits import Reader, Record, Splits
from kdpl.targets import Target
from kdpl.tasks import MultiClass

# a CLIP by a name for configs: a config in open_clip's form, and a function that reads its weights
register_model(
    "shape-student", CONFIGS["tiny-student"], {"mine": partial(packaged_weights, "tiny-student")}
)


class Shapes(Reader):
    """A dataset: circles and squares at random places, drawn when they are read."""

    task = "shapes.Smoothed"

    def read(self) -> Splits:
        """Return 40 training, 20 validation and 40 test images."""
        records = tuple(Record(f"shape/{number}", number % 2) for number in range(100))
        splits = records[:40], records[40:60], records[60:]
        return Splits("dataset shapes", ("circle", "square"), *splits, None, open_shape)


def open_shape(source: str) -> Image.Image:
    """Draw an image by its number."""
    number = int(source.removeprefix("shape/"))
    left, top = np.random.RandomState(number).randint(1, 15, 2).tolist()
    image = Image.new("RGB", (32, 32))
    draw = ImageDraw.Draw(image)
    shape = (draw.ellipse, draw.rectangle)[number % 2]
    shape((left, top, left + 15, top + 15), fill="white")
    return image


class Smoothed(MultiClass):
    """A task: one class an image, learned from labels of which some are wrong."""

    name = Shapes.task

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the cross entropy with labels smoothed by 0.1."""
        return F.cross_entropy(logits, labels, label_smoothing=0.1)


class Sharpened(Target):
    """A target of the student: the teacher's prediction at a temperature below 1."""

    def __init__(self, temperature: float = 0.5) -> None:
        self.temperature = temperature

    def logits(self, predicted: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Return the target's logits [B, C]."""
        return predicted / self.temperature


class CountSteps(Callback):
    """A callback: prints how many steps a fit took."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print it."""
        print(f"{type(pl_module).__name__}: {trainer.global_step} steps")
