"""Inputs of targets: teachers, the pool, and the labels that may be seen."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from kdpl.class_vectors import ClassVectors
from kdpl.clip import ImageTower
from kdpl.data.batches import Batch
from kdpl.data.datasets import OpenImage
from kdpl.data.names import Indices, Names
from kdpl.data.splits import Record
from kdpl.runtime.resizing import Resizing

Encoder = Callable[[Tensor], Tensor]
"""Encodes images uint8 [B, 3, S, S] on the device into features [B, D]."""


class FeatureFunction(Protocol):
    """Returns a teacher's features of images, from its cache or from the teacher itself."""

    def __call__(self, images: Sequence[str] | None, views: int, teacher: int = 0) -> Tensor:
        """Return normalised mean features over the first views of each image, float32 [N, D].

        Args:
            images: Sources of labelled or validation images; None: the unlabelled images that need
                a target.
            views: Views of each image.
            teacher: Index of the teacher, among several.
        """
        ...


class EncodeFunction(Protocol):
    """Returns the features that an encoder of the caller's makes of images."""

    def __call__(
        self,
        encoder: Encoder,
        resizing: Resizing,
        images: Sequence[str] | None,
        views: int,
    ) -> Tensor:
        """Return normalised mean features over the first views of each image, float32 [N, D].

        Args:
            encoder: The encoder.
            resizing: How it takes images.
            images: As for ``FeatureFunction``.
            views: Views of each image.
        """
        ...


class RowsFunction(Protocol):
    """Returns what a network makes of images, each process of its share."""

    def __call__(
        self, count: int, load: Callable[[Indices], Iterable[Batch]], network: Encoder, title: str
    ) -> Tensor:
        """Return a row for each image in their order, float32 [N, K], the same on every process.

        Args:
            count: Number N of images.
            load: Loads batches of those images whose numbers, int64 [n], it is given, in order.
            network: Makes rows [B, K] of the images of a batch, which are on the device.
            title: Words beside the progress bar.
        """
        ...


@dataclass(frozen=True)
class TargetInputs:
    """Inputs of ``Target.prepare`` before the first step of a fit, the same on every process.

    Attributes:
        folder: The run's folder.
        teacher_folder: The run's folder of the first teacher.
        resumes: Whether the fit resumes from a checkpoint.
        teachers: Class vectors of each teacher, the first one's first.
        tuned: Whether a teacher was tuned on labels, so that it may have seen those of ``labeled``.
        class_names: The names of the C classes, by label.
        num_base: Number of base classes, which come first; None without such a split.
        pool: Sources of all unlabelled images.
        indices: Those of them that need a target, as they are distilled on or held out to compare
            student and target, int64 [N].
        labeled: Labelled training images of the classes that the teacher was tuned on.
        val: Validation images of these classes.
        features: Function that returns a teacher's features of images.
        encode: Function that returns another encoder's features of images.
        rows: Function that returns what a network makes of batches of images.
        encoder: The first teacher, of images uint8 [B, 3, S, S]; it is loaded on the first call.
        open_image: Opens a source as an RGB image.
        num_workers: Worker processes that load images.
        tower: Function that returns the first teacher's image tower, loading it if need be.
        predict: Function that returns the teachers' logits [N, C] of their features side by side,
            [N, D_1 + … + D_M].
        device: Where the targets are used.
        on_first_process: Calls a function on the first process, for which the others wait.
    """

    folder: Path
    teacher_folder: Path
    resumes: bool
    teachers: Sequence[ClassVectors]
    tuned: bool
    class_names: tuple[str, ...]
    num_base: int | None
    pool: Names
    indices: Indices
    labeled: Sequence[Record]
    val: Sequence[Record]
    features: FeatureFunction
    encode: EncodeFunction
    rows: RowsFunction
    encoder: Encoder
    open_image: OpenImage
    num_workers: int
    tower: Callable[[], ImageTower]
    predict: Callable[[Tensor], Tensor]
    device: torch.device
    on_first_process: Callable[[Callable[[], object]], None]
