"""The unlabelled images of a domain, and those of them that a student learns from."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from kdpl.data.names import Indices, Names
from kdpl.data.sampling import generator, share_of


@dataclass(frozen=True, eq=False)
class UnlabeledPool:
    """Unlabelled images: to distil on, held out, or left out.

    Attributes:
        images: All unlabelled images.
        seed: Seed of the share and of samples.
        train: Sorted indices of the images to distil on, int64.
        held_out: Sorted indices of images that have a target and are not distilled on, int64.
        left_out: Sources of images that are unlike all classes, and neither of the two.
    """

    images: Names
    seed: int
    train: Indices
    held_out: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    left_out: Collection[str] = ()

    @classmethod
    def share(cls, images: Names, share: float, seed: int) -> "UnlabeledPool":
        """Return a pool to distil on a share of the images, at most 1, drawn by the seed."""
        train = share_of(len(images), share, seed) if share < 1 else np.arange(len(images))
        return cls(images, seed, train)

    @property
    def targeted(self) -> Indices:
        """Sorted indices of the images that need a target: to distil on, and held out."""
        return np.union1d(self.train, self.held_out) if len(self.held_out) else self.train

    @property
    def train_images(self) -> Names:
        """Images to distil on."""
        whole = len(self.train) == len(self.images)
        return self.images if whole else self.images.take(self.train)

    def holding_out(self, indices: Indices) -> "UnlabeledPool":
        """Return the pool with some images of ``train`` held out."""
        return replace(self, train=np.setdiff1d(self.train, indices), held_out=np.sort(indices))

    def leaving_out(self, sources: Collection[str]) -> "UnlabeledPool":
        """Return the pool without some images, also of those held out."""
        train, held_out = (
            indices[[source not in sources for source in self.images.take(indices)]]
            for indices in (self.train, self.held_out)
        )
        return replace(self, train=train, held_out=held_out, left_out=sources)

    def sample(self, n: int) -> Indices:
        """Draw the indices of up to n images to distil on, by the seed, sorted."""
        if len(self.train) <= n:
            return self.train
        rng = generator(self.seed, "sample")
        return self.train[np.sort(rng.choice(len(self.train), n, replace=False, shuffle=False))]
