"""A classifier's results for a sample of its pool, kept to compare new images with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from kdpl.confidence.student_outputs import LearnedCompanion, StudentOutputs
from kdpl.errors import ArtifactError
from kdpl.tasks import MULTI_CLASS

MAX_IMAGES = 1000
"""Largest number of images to keep: 1 MB for features of 512 numbers."""

REMEDY = "give images like those it was trained on by --against"


@dataclass(frozen=True)
class ImageSample(LearnedCompanion):
    """A classifier's features and predictions of N images.

    Attributes:
        features: Normalised features of the encoder, float16 [N, D].
        scores: Largest probability of each image, float32 [N].
        labels: Number of the most probable class, int64 [N].
    """

    file: ClassVar[str] = "pool_sample.safetensors"
    kind: ClassVar[str] = "a sample of the training pool"
    remedy: ClassVar[str] = f"remove it, and {REMEDY}"
    shapes: ClassVar = {"features": "float16 N D", "scores": "float32 N", "labels": "int64 N"}

    features: Tensor
    scores: Tensor
    labels: Tensor

    @classmethod
    def made_from(cls, outputs: StudentOutputs) -> Self | None:
        """Take the sample from a pool that the classifier has learned from."""
        if not outputs.pool or not outputs.trained or outputs.vectors.task != MULTI_CLASS.name:
            return None
        return cls.of(outputs.pool, outputs.vectors.class_names).draw(MAX_IMAGES)

    @classmethod
    def of(cls, predicted: Iterable[Any], class_names: Iterable[str]) -> Self:
        """Take the sample from predictions (``kdpl.tasks.Predicted``) for one or more images."""
        numbers = {name: number for number, name in enumerate(class_names)}
        rows = [
            (p.embedding.half(), p.top[0].probability, numbers[p.top[0].class_name])
            for p in predicted
        ]
        features, scores, labels = zip(*rows, strict=True)
        return cls(torch.stack(features), torch.tensor(scores), torch.tensor(labels))

    @classmethod
    def pool_features(cls, folder: Path, classifier: str, shape: Sequence[int]) -> Tensor | None:
        """Read the features if there is a file; errors as in ``load``."""
        exists = (folder / cls.file).is_file()
        return cls.load(folder, classifier, shape[1]).features.float() if exists else None

    def __len__(self) -> int:
        return len(self.scores)

    def draw(self, count: int) -> Self:
        """Draw at most ``count`` images, the same each time."""
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:count]
        if len(self) <= count:
            return self
        return type(self)(*(column[chosen] for column in vars(self).values()))

    @classmethod
    def read(cls, folder: Path, classifier: str, width: int = 0) -> None:
        """Return None: predictions do not need it."""

    @classmethod
    def load(cls, folder: Path, classifier: str, width: int = 0) -> Self:
        """Read the file of a folder, or raise an ArtifactError, also if it is missing."""
        if not (folder / cls.file).is_file():
            raise ArtifactError(
                f"{folder} has no sample of the pool that it was trained on ({cls.file}): {REMEDY}"
            )
        return super().load(folder, classifier, width)
