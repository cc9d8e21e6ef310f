"""Features by a frozen tower, which runs once for each view, and not in each epoch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kdpl.data.batches import Batch, EvaluationBatch, LabeledBatch, UnlabeledBatch
from kdpl.data.labels import Labels
from kdpl.data.names import Indices
from kdpl.targets.store import FeatureStore

STORED_VIEWS = 8
"""Stored views of each image by default."""


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """Features by the frozen tower of a module, which steps read instead of images.

    Attributes:
        views: Number V of views of each training image.
        images: Indices of the images in the list of training images, sorted, int64 [N].
        store: Features of their views, the first as in evaluation.
        val: Features of the validation images as in evaluation; None without any.
    """

    views: int
    images: Indices
    store: FeatureStore
    val: FeatureStore | None

    @classmethod
    def compute(
        cls,
        store: Callable[[Sequence[str] | None, int], FeatureStore],
        views: int,
        images: Indices,
        labels: Labels,
    ) -> "StoredFeatures":
        """Encode the images that are not stored yet, on all processes together.

        Args:
            store: Stores features of so many views of images, by their sources; None: the training
                images.
            views: As above.
            images: As above.
            labels: The labels, also of the validation images.
        """
        train, val = store(None, views), None
        if labels.splits.val:
            val = store([record.source for record in labels.evaluation("val")], 1)
        return cls(views, images, train, val)

    def of(self, batch: Batch) -> Tensor:
        """Return the features of validation images, or of stored views, float32 [B, W]."""
        match batch:
            case (
                UnlabeledBatch(indices=Tensor() as indices, views=Tensor() as views)
                | LabeledBatch(indices=Tensor() as indices, views=Tensor() as views)
            ):
                return self._rows(indices.cpu().numpy(), views.tolist()).to(indices.device)
            case EvaluationBatch(indices=indices) if self.val is not None:
                rows = self.val.rows(indices.cpu().numpy(), [0] * len(indices))
                return rows.to(indices.device)
        raise TypeError(f"{type(batch).__name__} names no stored view")

    def whole(self, indices: Indices) -> Tensor:
        """Return the features of images as in evaluation, by their indices, float32 [n, W]."""
        return self._rows(indices, [0] * len(indices))

    def _rows(self, indices: Indices, views: Sequence[int]) -> Tensor:
        return self.store.rows(np.searchsorted(self.images, indices), views)
