"""Batches of the datamodule as named tensors; the type of a batch shows what can leak from it.

Items of a dataset have the same types, without the first dimension B.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self, TypeVar

from torch import Tensor
from torch.utils.data import default_collate


@dataclass
class Batch:
    """Images for the image tower of the module that requested them.

    Not frozen: Lightning sets the fields of a copy when it moves a batch to another device.

    Attributes:
        images: uint8 [B, 3, S, S], un-normalised.
    """

    images: Tensor

    def __len__(self) -> int:
        """Return the number B of images."""
        return len(self.images)

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory; a DataLoader that pins memory calls this."""
        pinned = copy(self)
        for name, value in vars(self).items():
            setattr(pinned, name, None if value is None else value.pin_memory())
        return pinned


@dataclass
class LabeledBatch(Batch):
    """Views of labelled images.

    Attributes:
        images: As above; uint8 [B, 0], without pixels, if the features of views are stored.
        labels: int64 [B], indices of the class names; with several labels an image, float32 [B, C]
            of 0 and 1 for the C classes that are tuned on.
        indices: Positions in the list of labelled training images, int64 [B], for stored features;
            None if views are made.
        views: The stored views of the images, int64 [B]; None if views are made.
    """

    labels: Tensor
    indices: Tensor | None = None
    views: Tensor | None = None


@dataclass
class UnlabeledBatch(Batch):
    """Views of unlabelled images, and no labels.

    Labels enter stage 2 elsewhere: a prepared target uses labelled and validation images, and
    ``mixture.weights: validation`` validation images; validation measures accuracies, by which a
    callback may stop or choose; after training, further scores and thresholds are set on validation
    images. ``pool_filter`` compares with labelled images, without their labels.

    Attributes:
        images: As above; uint8 [B, 0], without pixels, if the features of views are stored.
        indices: int64 [B], positions in the list of all unlabelled images.
        views: The stored views of the images, int64 [B]; None if views are made.
        teacher_images: The same views, uint8 [B, 3, T, T], for a teacher that resizes images
            otherwise than the student.
        teacher_features: The teacher's normalised features of the views from a cache, float16
            [B, D]; None without a cache.
    """

    indices: Tensor
    views: Tensor | None = None
    teacher_images: Tensor | None = None
    teacher_features: Tensor | None = None


@dataclass
class EvaluationBatch(Batch):
    """Labelled images under the evaluation transform.

    Attributes:
        images: As above; uint8 [B, 0], without pixels, if their features are stored.
        labels: int64 [B], indices of the class names; with several labels an image, float32 [B, C]
            of 0 and 1 for all C classes.
        indices: int64 [B], positions in the split.
    """

    labels: Tensor
    indices: Tensor


BatchT = TypeVar("BatchT", bound=Batch)


def collate(items: Sequence[BatchT]) -> BatchT:
    """Stack items of a dataset, all with the same fields, into a batch."""
    # fields of items without them stay None
    batch = copy(items[0])
    for name, first in vars(batch).items():
        if first is not None:
            setattr(batch, name, default_collate([getattr(item, name) for item in items]))
    return batch
