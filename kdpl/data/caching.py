"""The side of the datamodule that keeps the teacher's features of unlabelled images on disk."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning.pytorch import LightningDataModule, Trainer

from kdpl.data.augmentation import Augmentation
from kdpl.data.consumer import consumer_of
from kdpl.data.datasets import RandomView, UnlabeledImages
from kdpl.data.feature_cache import FeatureCache
from kdpl.data.feature_cache import Manifest as CacheManifest
from kdpl.data.feature_manifest import Manifest
from kdpl.data.teacher_cache import TeacherCache, open_features
from kdpl.data.unlabeled import Unlabeled
from kdpl.errors import ConfigError


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
    _features: FeatureCache | None = None

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

    def cache_manifest(self, teacher: str, width: int, image_size: int, views: int | None = None) -> CacheManifest:
        """Describe the teacher cache that a run needs.

        Args:
            teacher: Fingerprint of the teacher.
            width: Width D of its features.
            image_size: Edge of the student's images in pixels.
            views: Views of each image; None: as many as the trainer has epochs.
        """
        epochs = self.trainer.max_epochs if self.trainer else None
        return CacheManifest.of(
            teacher=teacher,
            width=width,
            dataset=self.dataset,
            sources=self._unlabeled.sources,
            image_size=image_size,
            augmentation=self.augmentation,
            view_seed=self.seed,
            views=views or max(epochs or 0, 0),
        )

    def unlabeled_images(self, image_size: int) -> UnlabeledImages:
        """Views of all unlabelled images, of which ``unlabeled_share`` leaves out none, as ``fill`` takes them."""
        view = RandomView(self._unlabeled.splits.open_image, self.augmentation, image_size, self.seed)
        return UnlabeledImages(self._unlabeled.sources, view)

    @property
    def feature_cache(self) -> FeatureCache | None:
        """The teacher cache of a fit, opened on first use; None where the settings name none, or nothing is trained.

        Raises:
            ConfigError: The trainer's module does not say what its teacher is.
            DataError: The cache is missing, damaged, incomplete or of something else.
        """
        if self.teacher_cache is None or self.trainer is None or self.trainer.max_epochs == 0:
            return None
        if self._features is None:
            module: Any = self.trainer.lightning_module
            if not hasattr(module, "teacher_fingerprint") or not hasattr(module, "teacher_width"):
                raise ConfigError(
                    f"{type(module).__name__} has no teacher_fingerprint and teacher_width, which a teacher cache is "
                    "chosen by: leave data.init_args.teacher_cache out"
                )
            needed = self.cache_manifest(
                module.teacher_fingerprint, module.teacher_width, consumer_of(self.trainer).image_size
            )
            self._features = FeatureCache.open(Path(self.teacher_cache).expanduser(), needed)
        return self._features

    @property
    def _has_new_cache(self) -> bool:
        return hasattr(self.trainer.lightning_module if self.trainer else None, "teacher_fingerprint")

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
        old = None if self._cache is None else self._cache.features
        cache = self.feature_cache if self._has_new_cache else old
        if cache is None:
            return self.seed, None
        manifest, epochs = cache.manifest, cast(Trainer, self.trainer).max_epochs
        return manifest.view_seed, None if epochs is not None and 0 <= epochs <= manifest.views else manifest.views
