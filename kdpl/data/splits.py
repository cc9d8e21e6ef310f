"""Dataset as its reader returns it: names, lists of images, and a function that opens one."""

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
"""Index into the class names; sorted indices in a dataset with several labels an image."""


class Record(NamedTuple):
    """Labelled image: source for ``open_image``, usually a path, and its label.

    With several labels an image, the label ``()`` stands for none of the classes.
    """

    source: str
    label: Label

    @property
    def single(self) -> int:
        """The label of an image of one class; a ConfigError for several labels."""
        if isinstance(self.label, tuple):
            raise ConfigError(
                f"{self.source} has several labels, but this is for images of one class each: "
                "do without it on these data"
            )
        return self.label

    @property
    def labels(self) -> tuple[int, ...]:
        """All labels of the image: one, or several."""
        return self.label if isinstance(self.label, tuple) else (self.label,)


@dataclass(frozen=True)
class Splits:
    """A dataset before any protocol or sampling.

    Attributes:
        origin: Its name and location for messages.
        class_names: All classes, by label.
        train: Labelled training images.
        val: Labelled validation images; empty where the dataset has no such split.
        test: Labelled test images; empty where the dataset has no such split.
        unlabeled: Sources of images without labels, held as ``Names``; None: only the training
            images.
        open_image: Opens a source as an RGB image; picklable, since it is sent to worker processes.
        class_texts: Text or texts that the text tower reads for each class, by label; None: its
            name.
        held_out: True if the test images are training images that were set aside, because there
            were no test images.
        groups: Groups of labelled images by source, such as their cameras; a group stays in one
            split, and an image without a group stands by itself.
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
        """Compose class names; DataError for names that tables, pages or artifacts cannot hold."""
        object.__setattr__(self, "class_names", tuple(map(composed, self.class_names)))
        if self.unlabeled is not None:
            object.__setattr__(self, "unlabeled", Names.of(self.unlabeled))
        for name in self.class_names:
            if problem := fault_of_name(name):
                raise DataError(f"{self.origin} has a class name that {problem}: rename the class")

    @property
    def sources(self) -> Names:
        """All images, each once: test, validation, training, unlabelled."""
        # labelled images may also be in the unlabelled list
        labeled = dict.fromkeys(record.source for record in chain(self.test, self.val, self.train))
        unlabeled = Names.of(self.unlabeled or ())
        unlabeled = select(unlabeled, (source not in labeled for source in unlabeled))
        return Names.joined([Names.of(labeled), unlabeled])

    @cached_property
    def pool(self) -> Names:
        """Images to distil on: the unlabelled images, then the labelled training images."""
        train = Names.of(record.source for record in self.train)
        if self.unlabeled is None:
            return train
        unlabeled = Names.of(self.unlabeled)
        # an image in both lists keeps the name in the labelled one
        return Names.joined([unlisted(unlabeled, train), train]) if train else unlabeled

    def without_labels(self) -> "Splits":
        """Return the dataset with labels of test images only, and without validation images."""
        return replace(self, train=(), val=(), unlabeled=self.pool)

    def require_training_images(self) -> None:
        """Raise a DataError if there are only test images."""
        if not self.train and not self.unlabeled:
            raise DataError(
                f"{self.origin} is for tests alone: train on another dataset, then test on this one"
            )


class Reader(ABC):
    """Source of a dataset; its constructor's parameters are settings of the data section.

    Attributes:
        from_user: Whether the images are a user's, so that all are decoded before the first fit.
        decoding: How image files are opened, also by the classifier.
        task: Name of the task of the labels, see ``kdpl.tasks.build_task``.
    """

    from_user: bool = True
    # a literal: kdpl.tasks imports torch, and commands check paths before that
    task: str = "multiclass"
    decoding: Decoding = Decoding()

    @abstractmethod
    def read(self) -> Splits:
        """Read the dataset; DataError if it is missing or damaged."""
