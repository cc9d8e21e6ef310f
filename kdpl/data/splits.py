"""A dataset as its reader returns it: names, lists of images, and how to open one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import NamedTuple

from PIL.Image import Image

from kdpl.data.decoding import Decoding
from kdpl.data.names import Names, select, unlisted
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.class_names import ClassText, composed, fault_of_name

Label = int | tuple[int, ...]
"""Index into the class names; of a dataset with several labels an image, their rising indices."""


class Record(NamedTuple):
    """Labelled image: source for ``open_image``, usually a path, and its label.

    With several labels an image, the label ``()`` says that it is of none of the classes.
    """

    source: str
    label: Label

    @property
    def single(self) -> int:
        """The label as that of the one class; a ConfigError for several labels."""
        if isinstance(self.label, tuple):
            raise ConfigError(
                f"{self.source} has several labels, but this is for images of one class each: "
                "do without it on these data"
            )
        return self.label


def labels_of(record: Record) -> tuple[int, ...]:
    """Return all labels of an image, which are one or, of an image with several, any number."""
    return record.label if isinstance(record.label, tuple) else (record.label,)


@dataclass(frozen=True)
class Splits:
    """A dataset before any protocol or sampling.

    Attributes:
        origin: Its name and place for messages.
        class_names: All classes, by label.
        train: Labelled training images.
        val: Labelled validation images; empty where the dataset has no such split.
        test: Labelled test images; empty where the dataset has no such split.
        unlabeled: Sources of images without labels, held as ``Names``; None: there are none beside
            the training images.
        open_image: Opens a source as an RGB image. It travels to worker processes, so it has to be
            picklable.
        class_texts: Text or texts that the text tower reads for each class, by label; None: its
            name.
        held_out: True if the test images are training images that were set aside, because there
            were no others.
        groups: Group of labelled images by source, such as their camera, of which no two splits are
            drawn; an image without one is a group of its own.
    """

    origin: str
    class_names: tuple[str, ...]
    train: tuple[Record, ...]
    val: tuple[Record, ...]
    test: tuple[Record, ...]
    unlabeled: Sequence[str] | None
    open_image: Callable[[str], Image]
    class_texts: tuple[ClassText, ...] | None = None
    held_out: bool = False
    groups: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Compose class names; DataError for names that no table, page or artifact can hold."""
        object.__setattr__(self, "class_names", tuple(map(composed, self.class_names)))
        if self.unlabeled is not None:
            object.__setattr__(self, "unlabeled", Names.of(self.unlabeled))
        for name in self.class_names:
            if fault := fault_of_name(name):
                raise DataError(f"{self.origin} has a class name that {fault}: rename the class")

    @property
    def sources(self) -> Names:
        """All images, each once: test, validation, training, unlabelled."""
        labeled = dict.fromkeys(record.source for record in chain(self.test, self.val, self.train))
        others = Names.of(self.unlabeled or ())
        others = select(others, (source not in labeled for source in others))
        return Names.joined([Names.of(labeled), others])

    @cached_property
    def pool(self) -> Names:
        """Images to distil on: the unlabelled images, then the labelled training images."""
        train = Names.of(record.source for record in self.train)
        if self.unlabeled is None:
            return train
        unlabeled = Names.of(self.unlabeled)
        # under the names that the labels have
        return Names.joined([unlisted(unlabeled, train), train]) if train else unlabeled

    def without_labels(self) -> "Splits":
        """The dataset with labels of the test images alone, and without the validation images."""
        return replace(self, train=(), val=(), unlabeled=self.pool)

    def require_training_images(self) -> None:
        """Refuse a dataset that has only test images, by a DataError."""
        if not self.train and not self.unlabeled:
            raise DataError(
                f"{self.origin} is for tests alone: train on another dataset, then test on this one"
            )


class Reader(ABC):
    """Source of a dataset; its constructor's parameters are settings of the data section.

    Attributes:
        own: Whether the images are somebody's own, which are all decoded before the first fit.
        decoding: How image files are opened, which the classifier takes over.
        task: Name of the task that the labels are for, see ``kdpl.data.tasks``.
    """

    own: bool = True
    # spelled out: kdpl.tasks imports torch, and commands look for bad paths before that
    task: str = "multiclass"
    decoding: Decoding = Decoding()

    @abstractmethod
    def read(self) -> Splits:
        """Read the dataset; DataError if it is missing or damaged."""
