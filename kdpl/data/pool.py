"""The unlabelled images of a domain, and those of them that a student is distilled on."""

from functools import cached_property

import numpy as np

from kdpl.data.feature_cache import digest_of
from kdpl.data.names import Names
from kdpl.data.pieces import Indices
from kdpl.data.sampling import share_of
from kdpl.data.splits import Splits
from kdpl.errors import DataError


class Pool:
    """All unlabelled images of a dataset, of which a share is distilled on; a DataError if there are none.

    Attributes:
        all: Sources of all of them.
        used: Sources of those to distil on.
        chosen: Indices of these among all; None for all.
    """

    def __init__(self, splits: Splits, share: float, seed: int) -> None:
        splits.require_training_images()
        train, unlabeled = splits.train, splits.unlabeled
        self.all = Names.of((record.source for record in train) if unlabeled is None else unlabeled)
        if not self.all:
            raise DataError(f"{splits.origin} has no images to distil on: add some")
        self.used = self.all
        self.chosen: Indices | None = None
        if share < 1:
            self.keep(share_of(len(self.all), share, seed))

    def keep(self, indices: Indices) -> None:
        """Distil on these images alone."""
        self.used, self.chosen = self.all.take(indices), indices

    @property
    def indices(self) -> Indices:
        """Indices of the images to distil on, among all."""
        return np.arange(len(self.all)) if self.chosen is None else self.chosen

    @cached_property
    def digest(self) -> str:
        """Digest of the list of all."""
        return digest_of(self.all)
