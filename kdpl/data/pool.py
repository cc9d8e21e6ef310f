"""Unlabelled images of a domain, and the selection that a student is distilled on."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from kdpl.data.names import Indices, Names
from kdpl.data.sampling import generator, share_of


@dataclass(frozen=True, eq=False)
class Selection:
    """Selection of unlabelled images: to distil on, held out, or left out.

    Attributes:
        images: All unlabelled images.
        kept: Sorted indices of the images that need a target, to distil on or held out; None: all.
        unseen: Sorted indices of the images that have a target and are not distilled on.
        left_out: Sources of images that are neither distilled on nor held out.
    """

    images: Names
    kept: Indices | None = None
    unseen: Indices = field(default_factory=lambda: np.empty(0, np.int64))
    left_out: Collection[str] = ()

    @property
    def targeted(self) -> Indices:
        """Indices of the images that need a target."""
        return np.arange(len(self.images)) if self.kept is None else self.kept

    @property
    def chosen(self) -> Indices | None:
        """Indices of the images to distil on; None for all."""
        return self.indices if len(self.unseen) else self.kept

    @property
    def indices(self) -> Indices:
        """Indices of the images to distil on."""
        return np.setdiff1d(self.targeted, self.unseen) if len(self.unseen) else self.targeted

    @property
    def used(self) -> Names:
        """Images to distil on."""
        return self.images if self.chosen is None else self.images.take(self.chosen)

    def leaving_out(self, sources: Collection[str]) -> "Selection":
        """Return the selection without some images."""
        # held-out images may be left out as well
        images = self.images if self.kept is None else self.images.take(self.kept)
        kept = self.targeted[[source not in sources for source in images]]
        unseen = np.intersect1d(self.unseen, kept)
        return replace(self, kept=kept, unseen=unseen, left_out=sources)


@dataclass(eq=False)
class UnlabeledPool:
    """All unlabelled images, and the share that is distilled on.

    Args:
        images: All unlabelled images.
        share: Share to distil on, above 0 and at most 1, drawn by the seed.
        seed: Seed of the share and of samples.
    """

    images: Names
    share: float
    seed: int

    @cached_property
    def selection(self) -> Selection:
        """The share, before images are held out or left out."""
        kept = share_of(len(self.images), self.share, self.seed) if self.share < 1 else None
        return Selection(self.images, kept)

    def sample(self, n: int) -> Names:
        """Draw up to n images of the share by the seed, also images that a fit leaves out."""
        # a sample stands for the whole pool, not for its most typical images
        sources = self.selection.used
        if len(sources) <= n:
            return sources
        rng = generator(self.seed, "sample")
        return sources.take(np.sort(rng.choice(len(sources), n, replace=False, shuffle=False)))
