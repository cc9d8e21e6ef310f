"""Images that a LightningModule needs from the datamodule, and the towers they are made for."""

from dataclasses import dataclass
from typing import Literal

from kdpl.data.datasets import CachedFeatures
from kdpl.data.pool import UnlabeledPool
from kdpl.runtime.resizing import Resizing

TrainSplit = Literal["labeled", "unlabeled"]


@dataclass(frozen=True)
class Needs:
    """Images that a module trains on and is evaluated on.

    Attributes:
        split: Split of its training batches, ``LabeledBatch`` or ``UnlabeledBatch``.
        resizing: Resizing of all images for its image tower.
        teacher: Resizing of the same views for a teacher that runs in training steps.
        half_whole: Whether half of the unlabelled images in training batches are as in evaluation.
        pool: The unlabelled images of its training batches; None: all of the datamodule's pool.
        features: The teacher's features of their views, from a cache.
        stored_views: Number of views of each training image whose features the module has: its
            training and validation batches have no pixels; 0: none.
    """

    split: TrainSplit
    resizing: Resizing
    teacher: Resizing | None = None
    half_whole: bool = False
    pool: UnlabeledPool | None = None
    features: CachedFeatures | None = None
    stored_views: int = 0
