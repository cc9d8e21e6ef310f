"""Features of a sample of the pool, to compare held-out images with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from kdpl.confidence.student_outputs import LearnedCompanion, StudentOutputs
from kdpl.tasks import MULTI_CLASS

_MAX_IMAGES = 1000  # 1 MB for features of 512 numbers


@dataclass(frozen=True)
class PoolSample(LearnedCompanion):
    """A classifier's normalised features of N images of its pool, float16 [N, D]."""

    file: ClassVar[str] = "pool_sample.safetensors"
    kind: ClassVar[str] = "a sample of the training pool"
    remedy: ClassVar[str] = "remove it"
    shapes: ClassVar = {"features": "float16 N D"}

    features: Tensor

    @classmethod
    def made_from(cls, outputs: StudentOutputs) -> Self | None:
        """Take the sample from a pool that the classifier has learned from."""
        if not outputs.pool or not outputs.trained or outputs.vectors.task != MULTI_CLASS.name:
            return None
        features = torch.stack([predicted.embedding.half() for predicted in outputs.pool])
        drawn = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
        return cls(features[drawn[:_MAX_IMAGES].sort().values])

    @classmethod
    def read(cls, folder: Path, classifier: str, width: int = 0) -> None:
        """Return None: predictions do not need it."""

    @classmethod
    def pool_features(cls, folder: Path, classifier: str, shape: Sequence[int]) -> Tensor | None:
        """Read the features if there is a file; errors as in ``load``."""
        exists = (folder / cls.file).is_file()
        return cls.load(folder, classifier, shape[1]).features.float() if exists else None
