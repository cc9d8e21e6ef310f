"""The teachers' caches of a fit: opened, or filled before it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from kdpl.data.batches import UnlabeledBatch
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import UnlabeledImages
from kdpl.runtime.messages import inform
from kdpl.targets.cache.feature_cache import (
    VIEWS,
    CachedImages,
    FeatureCache,
    Manifest,
    cache_folders,
    fill,
)
from kdpl.targets.preparation import Encoder, Preparation
from kdpl.targets.shards import Work


@dataclass
class TeacherCaches:
    """``CachedFeatures`` of a datamodule: a complete cache for each teacher, of the same views."""

    data: DomainDataModule
    caches: Sequence[FeatureCache]

    @property
    def views(self) -> int:
        """Number of views of each image."""
        return self.caches[0].manifest.views

    @property
    def view_seed(self) -> int:
        """The seed that the views are drawn with."""
        return self.caches[0].manifest.view_seed

    def with_features(self, images: UnlabeledImages) -> Dataset[UnlabeledBatch]:
        """Return a dataset of the images and the features of their views."""
        return CachedImages(images, self.caches)


def teacher_features(preparation: Preparation) -> TeacherCaches | None:
    """Open the complete caches of all teachers, after filling them if asked to.

    None if there is no cache. A DataError if one is missing, of something else, damaged or
    incomplete.
    """
    if preparation.teacher_cache is None:
        return None
    if preparation.fill_teacher_cache:
        return fill_caches(preparation)
    data, caches = preparation.data, list[FeatureCache]()
    folders = cache_folders(preparation.teacher_cache, preparation.teachers.describe())
    for folder, teacher in folders:
        first = caches[0].manifest if caches else None
        needed = Manifest.of(data, teacher, data.pool.images, same_views=first)
        caches.append(FeatureCache.open(folder, needed, VIEWS if first else ()))
    return TeacherCaches(data, caches)


def fill_caches(preparation: Preparation, views: int | None = None) -> TeacherCaches:
    """Compute what the caches of all teachers lack, on all processes together.

    A teacher that was loaded for this stays on the device; a rerun with complete caches does
    without it.

    Args:
        preparation: The fit.
        views: Views of each image; None: as many as the caches have, or as there are epochs.
    """
    data, caches = preparation.data, list[FeatureCache]()
    folders = cache_folders(str(preparation.teacher_cache), preparation.teachers.describe())
    for number, (folder, teacher) in enumerate(folders):
        # further teachers see the views of the first
        first = caches[0].manifest if caches else None
        wanted = views or max(preparation.trainer.max_epochs or 0, 0)
        needed = Manifest.of(data, teacher, data.pool.images, wanted, first)
        images = data.unlabeled_images(needed.resizing)
        same = VIEWS if first else ["views"] if views else []
        encode = preparation.encoder(number)
        caches.append(_fill_and_open(preparation, encode, folder, needed, images, same))
    return TeacherCaches(data, caches)


def _fill_and_open(
    preparation: Preparation,
    encode: Encoder,
    folder: Path,
    needed: Manifest,
    images: UnlabeledImages,
    same: Collection[str],
) -> FeatureCache:
    trainer, data = preparation.trainer, preparation.data
    processes = (trainer.global_rank, trainer.world_size)
    work = Work(images, encode, data.eval_batch_size, data.num_workers, *processes)
    done = fill(folder, needed, work, same) * trainer.world_size
    trainer.strategy.barrier("kdpl cache")
    cache = FeatureCache.open(folder, needed, same)
    inform(
        f"teacher cache {folder}: complete, {len(images)} images, {cache.manifest.views} views of "
        f"each{f', {done} features computed' if done else ': nothing to do'}"
    )
    return cache
