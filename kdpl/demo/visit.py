"""A visit of the demo's page: an image, further classes, and the predictions for it; knows nothing of gradio."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kdpl.class_vectors import ClassVectors, NameEncoder
from kdpl.classifier import Classifier
from kdpl.classifier.sources import MAX_UPLOAD_PIXELS
from kdpl.data.decoding import open_image
from kdpl.data.sources import find_files
from kdpl.errors import ConfigError
from kdpl.runtime.class_names import composed
from kdpl.runtime.predictions import spread
from kdpl.tasks import Prediction

MAX_ADDED = 50
"""Largest number of further classes of a visitor."""

_EXAMPLES = 12


@dataclass(frozen=True)
class Visit:
    """State of one visitor: an image, uint8 [3, S, S], the seconds to read it, and added class vectors by name."""

    image: Tensor | None = None
    seconds: float = 0.0
    added: dict[str, ClassVectors] = field(default_factory=dict)


class Result(NamedTuple):
    """Predictions for an image, most probable first, and the seconds that the network took."""

    predictions: list[Prediction]
    seconds: float


class Demo:
    """A classifier for visitors, who can add classes by an encoder; raises an ArtifactError for another teacher's."""

    def __init__(self, classifier: Classifier, encoder: NameEncoder | None, top_k: int) -> None:
        if encoder is not None:
            classifier.vectors.require_teacher(encoder.prompts)
        self.classifier, self.encoder, self._top_k = classifier, encoder, top_k
        # warms up, because the first image takes longer
        size = classifier.preprocessing.image_size
        self.predict(Visit(torch.zeros(3, size, size, dtype=torch.uint8)))

    def look(self, visit: Visit, path: str, name: str) -> Visit:
        """Read an image, which replaces the one before; raises a DataError with its ``name`` if it is unreadable."""
        start = time.perf_counter()
        # by the name that the visitor knows it by
        opened = open_image(name, Path(path).read_bytes(), self.classifier.decoding, MAX_UPLOAD_PIXELS)
        image = self.classifier.prepare(opened)
        return replace(visit, image=image, seconds=time.perf_counter() - start)

    def add(self, visit: Visit, typed: str) -> Visit:
        """Add a class by its name; raises a KdplError if it is empty, known or too long, or there are too many."""
        if self.encoder is None:
            raise ConfigError("classes cannot be added here: start the demo with --teacher RUN")
        name = composed(" ".join(typed.split()))
        if not name:
            raise ConfigError("the class name is empty: type one, such as the name of a thing")
        if name in visit.added or name in self.classifier.class_names:
            raise ConfigError(f"the class {name!r} exists already: type another name")
        if len(visit.added) >= MAX_ADDED:
            raise ConfigError(f"there are {MAX_ADDED} further classes, the largest number: remove one first")
        return replace(visit, added={**visit.added, name: self.encoder.encode([name])})

    def keep(self, visit: Visit, names: Sequence[str]) -> Visit:
        """Remove all further classes except these."""
        return replace(visit, added={name: added for name, added in visit.added.items() if name in names})

    def predict(self, visit: Visit) -> Result | None:
        """Classify the visitor's image; None before there is one."""
        if visit.image is None:
            return None
        classifier = self.classifier
        for vectors in visit.added.values():
            classifier = classifier.add_classes(vectors)
        start = time.perf_counter()
        predictions = classifier.predict([visit.image], self._top_k, workers=1)[0]
        return Result(predictions, time.perf_counter() - start)


def find_examples(arguments: Sequence[str]) -> list[str]:
    """Choose up to twelve images, evenly spread over image files and folders; raises a DataError if one is invalid."""
    chosen = spread(list(find_files(arguments)), _EXAMPLES)
    for path in chosen:
        open_image(path)
    return chosen
