"""One addition of each kind, but the report's section."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image, ImageDraw
from torch.nn import functional as F

from kdpl import Classifier
from kdpl.classifier.companion import Companion
from kdpl.classifier.export import ExportedModel, InputType, program
from kdpl.classifier.formats.onnx import Format
from kdpl.cli.arguments import MakeRule
from kdpl.clip import register_model
from kdpl.clip.miniatures.models import CONFIGS, packaged_weights
from kdpl.data.domain import domain_of
from kdpl.data.splits import Reader, Record, Splits
from kdpl.runtime.files import write_text
from kdpl.targets import Target
from kdpl.tasks import DecisionRule, MultiClass


# datasets: a reader, here of images that are drawn
class Shapes(Reader):
    """Circles and squares at random places."""

    task = "smoothed"

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


READERS = {"shapes": Shapes}


# tasks: what labels are for, here labels of which some are wrong
class Smoothed(MultiClass):
    """One class an image, learned with smoothed labels."""

    name = "smoothed"

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the cross entropy with labels smoothed by 0.1."""
        return F.cross_entropy(logits, labels, label_smoothing=0.1)


# targets: what the student learns of an unlabelled image
class Sharpened(Target):
    """The teacher's prediction at a temperature below 1."""

    def __init__(self, temperature: float = 0.5) -> None:
        self.temperature = temperature

    def logits(self, predicted: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Return the target's logits [B, C]."""
        return predicted / self.temperature


# models: a CLIP by a name for configs, from your config and weights
def register() -> None:
    """Register a CLIP."""
    name = "tiny-student"
    register_model("shape-student", CONFIGS[name], {"mine": partial(packaged_weights, name)})


# callbacks: of every fit and test
class CountSteps(Callback):
    """Prints how many steps a fit took."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print it."""
        print(f"{type(pl_module).__name__}: {trainer.global_step} steps")


def callbacks(module: LightningModule) -> list[Callback]:
    """Return the callbacks of a fit or test of this LightningModule."""
    return [CountSteps()]


# companions and handover: a file beside a classifier, and what makes it when a student is finished
class Seen(Companion):
    """The number of unlabelled images that a student saw."""

    file = "shapes.json"

    def __init__(self, images: int) -> None:
        self.images = images

    def save(self, folder: Path, classifier: str) -> None:
        """Write the file, with the fingerprint of its classifier."""
        write_text(folder / self.file, json.dumps(vars(self) | {"classifier": classifier}))


def companions(trainer: Trainer, classifier: Classifier) -> list[Companion]:
    """Make the companions of a finished student's classifier."""
    return [Seen(len(domain_of(trainer).training_pool.train))]


# formats: of exported files
def write(classifier: Classifier, input_type: InputType, path: Path) -> None:
    """Write a program of torch.export."""
    torch.export.save(program(classifier, input_type), path)


def load(path: Path) -> ExportedModel:
    """Return the function that runs a file."""
    return torch.export.load(path).module()


FORMAT = Format(".pt2", write, load, extras={})


# predict: options that decide what is predicted
def decide(*, sure: float | None = None) -> MakeRule:
    """Read the options; called if one of them is given.

    Args:
        sure: smallest probability of a prediction
    """
    return lambda classifier: DecisionRule(threshold=sure)


# commands: a typed function with a Google docstring
def classes(classifier: str, *, sep: str = ", ") -> int:
    """Print the names of a classifier's classes.

    Args:
        classifier: Its folder.
        sep: Text between two names.
    """
    print(sep.join(Classifier.load(classifier).class_names))
    return 0
