"""Needs of a LightningModule that the datamodule serves: images, made for which towers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from kdpl.runtime.resizing import Resizing

TrainSplit = Literal["labeled", "unlabeled"]


@dataclass(frozen=True)
class TeacherDescription:
    """A teacher, as a cache of its features is described.

    Attributes:
        fingerprint: Digest of its weights and prompts.
        width: Width D of its features.
        resizing: How it takes its images.
    """

    fingerprint: str
    width: int
    resizing: Resizing


@dataclass(frozen=True)
class Needs:
    """The images that a module trains on and is evaluated on.

    Attributes:
        split: Split of its training batches, ``LabeledBatch`` or ``UnlabeledBatch``.
        resizing: How its image tower takes all images.
        teachers: Returns a description of each teacher. It is called in a fit alone, since the
            files of further teachers are read for it.
        whole: Whether half of the unlabelled images in training batches are as in evaluation.
    """

    split: TrainSplit
    resizing: Resizing
    teachers: Callable[[], Sequence[TeacherDescription]] = tuple
    whole: bool = False


class HasNeeds(Protocol):
    """A LightningModule that ``DomainDataModule`` can make batches for."""

    @property
    def needs(self) -> Needs:
        """The images that it trains on and is evaluated on."""
        ...


def needs_of(module: object) -> Needs:
    """Return what a module needs."""
    return cast(HasNeeds, module).needs
