"""Features by a student's frozen tower: it runs once for each view, and not in each epoch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdpl.data.batches import Batch, EvaluationBatch, UnlabeledBatch
from kdpl.data.names import Indices
from kdpl.targets.inputs import TargetInputs
from kdpl.targets.store import FeatureStore


@dataclass(frozen=True, eq=False)
class StudentFeatures:
    """Pooled features by the frozen tower of a student, which steps read instead of images.

    Attributes:
        views: Number V of views of each image.
        images: Indices of the images in the list of unlabelled images, sorted, int64 [N].
        store: Features of their views, the first as in evaluation.
        val: Features of the M validation images, float32 [M, W]; [0] without any.
    """

    views: int
    images: Indices
    store: FeatureStore
    val: Tensor

    @classmethod
    def compute(cls, inputs: TargetInputs) -> "StudentFeatures":
        """Encode the images that are not stored yet, on all processes together."""
        store, val = inputs.student_store(None, inputs.stored_views), torch.empty(0)
        if inputs.labels.splits.val:
            sources = [record.source for record in inputs.labels.evaluation("val")]
            val = torch.from_numpy(inputs.student_store(sources, 1).read_all())[:, 0].float()
        return cls(inputs.stored_views, inputs.pool.targeted, store, val.to(inputs.device))

    def of(self, batch: Batch) -> Tensor:
        """Return the features of validation images, or of stored views, float32 [B, W]."""
        match batch:
            case UnlabeledBatch(indices=indices, views=Tensor() as views):
                return self._rows(indices.cpu().numpy(), views.tolist()).to(indices.device)
            case EvaluationBatch(indices=indices):
                return self.val[indices]
        raise TypeError(f"{type(batch).__name__} names no stored view")

    def whole(self, indices: Indices) -> Tensor:
        """Return the features of images as in evaluation, by their indices, float32 [n, W]."""
        return self._rows(indices, [0] * len(indices))

    def _rows(self, indices: Indices, views: Sequence[int]) -> Tensor:
        return self.store.rows(np.searchsorted(self.images, indices), views)
