"""The side of the datamodule that keeps the teacher's features of unlabelled images on disk."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import cast

import numpy as np
from lightning.pytorch import LightningDataModule, Trainer

from kdpl.data.augmentation import Augmentation
from kdpl.data.consumer import consumer_of
from kdpl.data.feature_manifest import Manifest
from kdpl.data.teacher_cache import TeacherCache, open_features
from kdpl.data.unlabeled import Unlabeled


class CachingDataModule(LightningDataModule, ABC):
    """A datamodule whose batches of unlabelled images may come with the teacher's features.

    Attributes:
        dataset: Name of the dataset.
        augmentation: Family of views.
        teacher_cache: Folder of the features, or None.
        fill_teacher_cache: Whether what it lacks is computed in training.
        seed: Seed of the views, where the cache has none of its own.
    """

    dataset: str
    augmentation: Augmentation
    teacher_cache: str | None
    fill_teacher_cache: bool
    seed: int
    _cache: TeacherCache | None = None

    @property
    @abstractmethod
    def _unlabeled(self) -> Unlabeled: ...

    def open_teacher_cache(
        self, teacher: str, width: int, views: int | None = None, all_views: bool = False
    ) -> TeacherCache | None:
        """Open the cache of the teacher's features, for a trainer's module that distils.

        Args:
            teacher: Fingerprint of the teacher.
            width: Width D of its features.
            views: Views of each image that the cache must have; None: as many as it has, or as there are epochs if it
                is made now.
            all_views: Whether all of them are wanted, not only those that the trainer's epochs come to.

        Returns:
            The cache, which training batches come from then on; None where the settings name none, or nothing is
            trained.

        Raises:
            ConfigError: The cache is to be made, and the trainer does not say its epochs.
            DataError: The cache is missing, damaged, incomplete, of something else, or being filled already.
        """
        consumer, trainer = consumer_of(self.trainer), cast(Trainer, self.trainer)
        epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
        if self.teacher_cache is None or (epochs == 0 and not all_views):
            return None
        needed = Manifest.of(
            teacher=teacher,
            width=width,
            dataset=self.dataset,
            sources=self._unlabeled.sources,
            image_size=consumer.image_size,
            augmentation=self.augmentation,
            view_seed=self.seed,
            views=views or epochs or 0,
        )
        features = open_features(
            Path(self.teacher_cache).expanduser(),
            needed,
            views,
            self.fill_teacher_cache,
            trainer.is_global_zero,
            trainer.strategy.barrier,
        )
        used = features.manifest.views if all_views or epochs is None else min(epochs, features.manifest.views)
        indices = np.array(self._unlabeled.indices, dtype=np.int64)
        self._cache = TeacherCache(features, indices, range(used), self.fill_teacher_cache)
        return self._cache

    def teardown(self, stage: str) -> None:
        """Let others fill the cache."""
        del stage
        self._unlock_cache()

    def on_exception(self, exception: BaseException) -> None:
        """Let others fill the cache, of which this process may live on."""
        del exception
        self._unlock_cache()

    def _unlock_cache(self) -> None:
        if self._cache is not None:
            self._cache.features.unlock()

    @property
    def view_source(self) -> tuple[int, int | None]:
        """Seed of the views of unlabelled images, and how many an image has; None for one of its own in each epoch."""
        if self._cache is None:
            return self.seed, None
        manifest, epochs = self._cache.features.manifest, cast(Trainer, self.trainer).max_epochs
        return manifest.view_seed, None if epochs is not None and 0 <= epochs <= manifest.views else manifest.views
