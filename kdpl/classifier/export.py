"""Export of a classifier by torch.export to a file that runs without kdpl, and its check."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kdpl import __version__
from kdpl.classifier import Classifier
from kdpl.runtime.files import atomic_path

InputType = Literal["uint8", "float"]
"""Images as bytes 0..255, or as float32 in [0, 1]; normalised inside either way."""

ExportedModel = Callable[[Tensor], Sequence[Tensor]]
"""Runs an exported file: maps images in its input format to outputs in the order of ``OUTPUTS``."""

INPUT = "images"
OUTPUTS = ("logits", "probabilities")
"""Names of the outputs; further scores follow."""
BATCHES = {INPUT: {0: Dim("batch")}}

_CHECKED_AT_ONCE = 64
_GOLDEN_EDGE = 512


class _Graph(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.companions = classifier.companions  # read before the trace

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.classifier.encoder(images)
        logits = self.classifier.logits(features)
        probabilities = self.classifier.task.probabilities(logits)
        return (logits, probabilities, *self.classifier.scores(features).values())


def outputs(classifier: Classifier) -> tuple[str, ...]:
    """Return the names of the outputs of an exported file."""
    nothing = classifier.head.class_vectors[:0]
    return (*OUTPUTS, *classifier.scores(nothing))


def as_input(images: Tensor, input_type: InputType) -> Tensor:
    """Convert images, uint8 [B, 3, S, S], to the input of an exported file."""
    return images if input_type == "uint8" else images.float() / 255


def metadata(classifier: Classifier, input_type: InputType) -> dict[str, str]:
    """Return an exported file's metadata: how to prepare images, and the class of each logit."""
    # preparation of images
    images = classifier.preprocessing.resizing
    size = images.image_size
    edge = "both edges" if images.resize_mode == "squash" else "the shortest edge"
    numbers = "uint8 in 0..255" if input_type == "uint8" else "float32 in 0..1"

    # metadata of the task and of companions
    further = classifier.task.metadata(len(classifier.class_names))
    for companion in classifier.companions.values():
        further |= companion.metadata(len(classifier.class_names))
    return {
        "class_names": json.dumps(classifier.class_names),
        "decoding": json.dumps(asdict(classifier.decoding)),
        **{name: str(value) for name, value in vars(images).items()},
        "resize": f"{edge} to {images.edge}, {images.interpolation} with antialiasing as Pillow "
        "does it",
        "crop": f"the square of {size} in the centre, black where the image does not reach",
        "input": f"RGB, [batch, 3, image_size, image_size], {numbers}",
        "logit_scale": str(classifier.logit_scale),
        "fingerprint": classifier.fingerprint(),
        **further,
        "kdpl_version": __version__,
    }


def program(classifier: Classifier, input_type: InputType) -> ExportedProgram:
    """Trace a classifier for batches of any size."""
    size = classifier.preprocessing.image_size
    # a batch of one would be traced as a constant
    example = as_input(torch.zeros(2, 3, size, size, dtype=torch.uint8), input_type)
    tower = classifier.encoder.tower.module
    before = tower.memory_format
    # runtimes choose their memory formats
    tower.use_memory_format(torch.contiguous_format)
    try:
        return torch.export.export(_Graph(classifier).eval(), (example,), dynamic_shapes=BATCHES)
    finally:
        tower.use_memory_format(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Disable gradients, and the output and warnings of exporters about their internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # the calibration prints its progress, and onnxscript before 0.7 the number of rules applied
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class Difference(NamedTuple):
    """Differences between an exported file and its classifier on some images.

    Attributes:
        images: Number of images compared.
        same: Number of images with the same predicted class, or classes.
        largest: Largest difference of a logit, a probability or a further score.
    """

    images: int
    same: int
    largest: float

    @property
    def agreement(self) -> float:
        """Share of images with the same predicted class."""
        return self.same / self.images

    def __str__(self) -> str:
        return (
            f"the same class for {self.same} of {self.images} images ({self.agreement:.1%}), "
            f"outputs off by at most {self.largest:.2g}"
        )


@torch.inference_mode()
def compare(
    classifier: Classifier,
    run: ExportedModel,
    images: Tensor | Iterable[Image],
    input_type: InputType,
) -> Difference:
    """Run an exported file and its classifier on at least one image.

    A file with preprocessing inside is given RGB images of any size, others uint8 [N, 3, S, S].
    """
    graph, largest, same, count = _Graph(classifier), torch.zeros(()), 0, 0
    for prepared, tensors in _inputs(classifier, images, input_type):
        expected, exported = graph(prepared), run(tensors)
        same += int(classifier.task.same(expected[0], exported[0]).sum())
        count += len(prepared)
        for outputs in zip(expected, exported, strict=True):
            largest = torch.maximum(largest, torch.sub(*outputs).abs().max())  # NaN stays NaN
    return Difference(count, same, float(largest))


def _inputs(
    classifier: Classifier, images: Tensor | Iterable[Image], input_type: InputType
) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(images, Tensor):
        for batch in torch.split(images, _CHECKED_AT_ONCE):
            yield batch, as_input(batch, input_type)
    else:
        for image in images:
            yield classifier.prepare(image)[None], torch.from_numpy(np.array(image))[None]


@torch.inference_mode()
def write_golden(
    classifier: Classifier, images: Iterable[Image], input_type: InputType | None, path: Path
) -> None:
    """Write RGB images, the classifier's logits of them, and unless they are inside, its inputs.

    An input type of None says that preprocessing is inside the exported file.
    """
    images = [image.copy() for image in images]
    for image in images:
        image.thumbnail((_GOLDEN_EDGE, _GOLDEN_EDGE))  # for a small file
    prepared = torch.stack([classifier.prepare(image) for image in images])
    arrays: dict[str, Any] = {f"image_{i}": np.asarray(image) for i, image in enumerate(images)}
    if input_type is not None:
        arrays["inputs"] = as_input(prepared, input_type).numpy()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, logits=classifier(prepared).numpy(), **arrays)
