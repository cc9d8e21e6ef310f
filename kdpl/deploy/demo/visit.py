"""What a visitor of the page may do, and what comes of it; knows nothing of gradio."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from kdpl.class_vectors import ClassVectors, NameEncoder
from kdpl.classifier import Classifier, Prediction
from kdpl.data.decoding import open_image
from kdpl.data.storage import find_images
from kdpl.errors import ConfigError, DataError

MAX_ADDED = 50
"""How many further classes a visitor may have."""

_NAME_LENGTH = 200  # far more than any text tower reads, and little enough to show
_EXAMPLES = 12


@dataclass(frozen=True)
class Visit:
    """What one visitor has done; no other sees it.

    Attributes:
        photo: The image, as the network takes it, uint8 [3, S, S]; None before the first.
        seconds: How long it took to read it.
        added: Class vectors of the further classes, by name.
    """

    photo: Tensor | None = None
    seconds: float = 0.0
    added: dict[str, ClassVectors] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """What the classifier says of an image.

    Attributes:
        guesses: Most probable first.
        seconds: How long the network took.
    """

    guesses: list[Prediction]
    seconds: float


class Demo:
    """A classifier for visitors.

    Args:
        classifier: The classifier.
        encoder: Its teacher's, for further class names; None: there are none.
        top_k: How many guesses for each image, at most the number of classes.

    Raises:
        ArtifactError: The encoder is not of the teacher that the classifier was distilled from.
    """

    def __init__(self, classifier: Classifier, encoder: NameEncoder | None, top_k: int) -> None:
        if encoder is not None:
            classifier.require_teacher(encoder.prompts)
        self.classifier = classifier
        self.encoder = encoder
        self._top_k = top_k
        # the first image would take longer than all others
        size = classifier.preprocessing.image_size
        self.answer(Visit(torch.zeros(3, size, size, dtype=torch.uint8)))

    @classmethod
    def load(cls, classifier: str | Path, add_classes: str | None, teacher: str | None, top_k: int) -> "Demo":
        """Read all that the command names.

        Raises:
            KdplError: Something is missing or damaged, or they do not fit together.
        """
        loaded = Classifier.load(classifier)
        if add_classes is not None:
            loaded = loaded.add_classes(ClassVectors.load(Path(add_classes)))
        return cls(loaded, NameEncoder.load(teacher) if teacher is not None else None, top_k)

    def look(self, visit: Visit, path: str, name: str) -> Visit:
        """Take an image in the place of the one before.

        Args:
            visit: The visit so far.
            path: The image's file.
            name: What the visitor calls it.

        Raises:
            DataError: It is no image, or damaged.
        """
        start = time.perf_counter()
        try:
            photo = self.classifier.prepare(open_image(path))
        except DataError as error:
            raise DataError(
                f"the file {name} cannot be read as an image, because it is damaged, cut off, too large or something "
                "else: give another, for example as PNG, JPEG or WebP"
            ) from error
        return replace(visit, photo=photo, seconds=time.perf_counter() - start)

    def clear(self, visit: Visit) -> Visit:
        """Forget the image."""
        return replace(visit, photo=None, seconds=0.0)

    def add(self, visit: Visit, typed: str) -> Visit:
        """Add a class by its name.

        Raises:
            KdplError: The name is empty, there already or too long, or there are too many.
        """
        if self.encoder is None:
            raise ConfigError("classes cannot be added here: start the demo with --teacher RUN")
        name = " ".join(typed.split())
        if not name:
            raise ConfigError("the class name is empty: type one, such as the name of a thing")
        if len(name) > _NAME_LENGTH:
            raise ConfigError(
                f"the class name has {len(name):,} characters, expected at most {_NAME_LENGTH}: shorten it"
            )
        if name in visit.added or name in self.classifier.class_names:
            raise ConfigError(f"the class {name!r} is there already: type another name")
        if len(visit.added) >= MAX_ADDED:
            raise ConfigError(f"there are {MAX_ADDED} further classes, the most that can be: remove one first")
        return replace(visit, added={**visit.added, name: self.encoder.encode([name])})

    def keep(self, visit: Visit, names: Sequence[str]) -> Visit:
        """Remove all further classes but these."""
        return replace(visit, added={name: added for name, added in visit.added.items() if name in names})

    def answer(self, visit: Visit) -> Answers | None:
        """Classify the visitor's image; None before there is one."""
        if visit.photo is None:
            return None
        classifier = self.classifier
        for vectors in visit.added.values():
            classifier = classifier.add_classes(vectors)
        start = time.perf_counter()
        guesses = classifier.predict([visit.photo], self._top_k, workers=1)[0]
        return Answers(guesses, time.perf_counter() - start)


def find_examples(arguments: Sequence[str]) -> list[str]:
    """Choose images to show, spread evenly over all that are given.

    Args:
        arguments: Image files, and folders, which are searched recursively.

    Raises:
        DataError: One does not exist, has no images or cannot be read.
    """
    found: list[str] = []
    for argument in arguments:
        images = find_images(Path(argument)) if Path(argument).is_dir() else [argument]
        if not images:
            raise DataError(f"folder {argument} has no images: give --examples some")
        found += images
    number = min(len(found), _EXAMPLES)
    chosen = [found[i * len(found) // number] for i in range(number)]
    for path in chosen:
        open_image(path)
    return chosen
