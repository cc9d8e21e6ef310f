"""The unlabelled images of a domain, and those of them that a student is distilled on."""

from collections.abc import Collection

import numpy as np

from kdpl.data.names import Indices, Names
from kdpl.data.sampling import generator, share_of


class UnlabeledPool:
    """All unlabelled images, of which a share, less what is left out, is distilled on.

    Args:
        images: All of them.
        share: Share to distil on, above 0 and at most 1, drawn by the seed.
        seed: Seed of the share, and of samples.

    Attributes:
        left_out: Images that are not distilled on, by their content.
        unseen: Indices of images that are held out of distillation but have a target, rising; to be
            set before the training loader is made, and before images are left out.
    """

    def __init__(self, images: Names, share: float, seed: int) -> None:
        self.images = images
        self.seed = seed
        self.left_out: Collection[str] = ()
        self.unseen: Indices = np.empty(0, np.int64)
        self._share = share_of(len(images), share, seed) if share < 1 else None
        self._kept = self._share

    @property
    def targeted(self) -> Indices:
        """Indices of the images that need a target: to distil on, or held out."""
        return np.arange(len(self.images)) if self._kept is None else self._kept

    @property
    def chosen(self) -> Indices | None:
        """Indices of the images to distil on, among all; None for all."""
        return self.indices if len(self.unseen) else self._kept

    @property
    def indices(self) -> Indices:
        """Indices of the images to distil on, among all."""
        return np.setdiff1d(self.targeted, self.unseen) if len(self.unseen) else self.targeted

    @property
    def used(self) -> Names:
        """The images to distil on."""
        return self.images if self.chosen is None else self.images.take(self.chosen)

    def leave_out(self, sources: Collection[str]) -> None:
        """Neither distil on some images nor hold them out.

        To be called before the training loader is made.
        """
        images = self.images if self._kept is None else self.images.take(self._kept)
        kept = [source not in sources for source in images]
        self.left_out, self._kept = sources, self.targeted[kept]
        self.unseen = np.intersect1d(self.unseen, self._kept)

    def sample(self, n: int) -> Names:
        """Draw up to n of the images, also of those left out, by the seed."""
        # images like the pool are like all of it, not like its most typical ones
        sources = self.images if self._share is None else self.images.take(self._share)
        if len(sources) <= n:
            return sources
        chosen = generator(self.seed, "sample").choice(
            len(sources), n, replace=False, shuffle=False
        )
        return sources.take(np.sort(chosen))
