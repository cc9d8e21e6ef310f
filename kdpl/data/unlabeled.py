"""The unlabelled images that stage 2 distils on: which they are, and the datasets of their views."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from kdpl.data.augmentation import Augmentation
from kdpl.data.datasets import CachedImages, RandomView, UnlabeledImages
from kdpl.data.image import resize_and_crop, to_tensor
from kdpl.data.sampling import share_of
from kdpl.data.splits import Splits
from kdpl.data.teacher_cache import TeacherCache
from kdpl.errors import DataError


@dataclass(frozen=True)
class Unlabeled:
    """The unlabelled images of a dataset, less what a run leaves out.

    Attributes:
        splits: The dataset.
        share: Share of the images that is used, above 0 and at most 1.
        seed: Seed of that share, and of the views where no cache has its own.
    """

    splits: Splits
    share: float
    seed: int

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """All of them.

        Raises:
            DataError: There are none.
        """
        self.splits.require_training_images()
        sources = self.splits.unlabeled
        if sources is None:
            sources = tuple(record.source for record in self.splits.train)
        if not sources:
            raise DataError(f"{self.splits.origin} has no images to distil on: add some.")
        return sources

    @cached_property
    def indices(self) -> Sequence[int]:
        """Which of them are distilled on."""
        count = len(self.sources)
        return share_of(count, self.share, self.seed) if self.share < 1 else range(count)

    def images(
        self, augmentation: Augmentation, image_size: int, cache: TeacherCache | None, all_of_them: bool = False
    ) -> UnlabeledImages | CachedImages:
        """Views of the images that are distilled on, or of all, with what a cache has of them.

        Args:
            augmentation: Family of views.
            image_size: Edge S in pixels.
            cache: The teacher's features, if they are kept; the views are then the cache's.
            all_of_them: Whether the images that are not distilled on come as well.
        """
        sources = self.sources
        indices = range(len(sources)) if all_of_them else self.indices
        seed = self.seed if cache is None else cache.features.manifest.view_seed
        view = RandomView(self.splits.open_image, augmentation, image_size, seed)
        images = UnlabeledImages([sources[i] for i in indices], view, indices)
        return images if cache is None else CachedImages(images, cache.features, cache.fill)

    def preview(self, n: int, image_size: int) -> torch.Tensor:
        """Up to n images under the evaluation transform, spread evenly over the list, uint8 [n, 3, S, S]."""
        sources, indices = self.sources, self.indices
        n = min(n, len(indices))
        chosen = [sources[indices[i * len(indices) // n]] for i in range(n)]
        return torch.stack([to_tensor(resize_and_crop(self.splits.open_image(s), image_size)) for s in chosen])
