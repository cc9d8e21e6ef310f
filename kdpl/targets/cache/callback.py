"""The teachers' caches of a fit: opened or filled, and with the same views when it is resumed."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import Dataset

from kdpl.data.batches import UnlabeledBatch
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.domain import domain_of
from kdpl.data.needs import TeacherDescription, needs_of
from kdpl.runtime.messages import inform
from kdpl.student import StudentDistillation
from kdpl.targets.cache.feature_cache import (
    VIEWS,
    CachedImages,
    FeatureCache,
    Manifest,
    cache_folders,
    fill,
)
from kdpl.targets.shards import Work
from kdpl.targets.teacher_encoder import teacher_encoder


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


def open_caches(data: DomainDataModule) -> TeacherCaches | None:
    """Open the complete caches of all teachers; None if the module needs no teacher.

    A DataError if one is missing, of something else, damaged or incomplete.
    """
    caches = list[FeatureCache]()
    for folder, teacher in cache_folders(str(data.teacher_cache), teachers_of(data)):
        first = caches[0].manifest if caches else None
        needed = Manifest.of(data, teacher, data.pool.images, same_views=first)
        caches.append(FeatureCache.open(folder, needed, VIEWS if first else ()))
    return TeacherCaches(data, caches) if caches else None


def teachers_of(data: DomainDataModule) -> Sequence[TeacherDescription]:
    """Describe the teachers of the module that a datamodule's trainer runs."""
    return needs_of(cast(Trainer, data.trainer).lightning_module).teachers()


class FillTeacherCache(Callback):
    """Computes what the teacher cache lacks, on all processes together, before the first epoch.

    A teacher that was loaded for this stays on the device; a rerun with the complete cache does
    without it.

    Args:
        views: Views of each image; None: only if ``data.init_args.fill_teacher_cache`` asks for it,
            with those that the cache has, or as many as there are epochs.
    """

    def __init__(self, views: int | None = None) -> None:
        self.views = views

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill the cache of each teacher, and check that it is intact."""
        data, student = domain_of(trainer), cast(StudentDistillation, pl_module)
        asked = self.views or (data.fill_teacher_cache and data.opened_cache is None)
        teachers = needs_of(pl_module).teachers()  # none in stage 1, or for a target without one
        if not asked or not teachers:
            return
        caches = list[FeatureCache]()
        folders = cache_folders(str(data.teacher_cache), teachers)
        for number, (folder, teacher) in enumerate(folders):
            # further teachers see the views of the first
            first = caches[0].manifest if caches else None
            wanted = self.views or max(trainer.max_epochs or 0, 0)
            needed = Manifest.of(data, teacher, data.pool.images, wanted, first)
            images = data.unlabeled_images(needed.resizing)
            same = VIEWS if first else ["views"] if self.views else []
            encode = teacher_encoder(trainer, student, number)
            caches.append(_fill_and_open(data, encode, folder, needed, images, same))
        data.opened_cache = TeacherCaches(data, caches)


def _fill_and_open(
    data: DomainDataModule,
    encode: Callable[[Tensor], Tensor],
    folder: Path,
    needed: Manifest,
    images: UnlabeledImages,
    same: Collection[str],
) -> FeatureCache:
    trainer = cast(Trainer, data.trainer)
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
