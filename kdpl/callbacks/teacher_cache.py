"""The teacher's features of the unlabelled images, computed before a student's training starts."""

import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.class_vectors import FrozenTeacher
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.domain import domain_of
from kdpl.data.feature_cache import VIEWS, FeatureCache, Manifest, cache_folders
from kdpl.data.feature_filling import Work, fill
from kdpl.data.names import Names
from kdpl.runtime.messages import inform
from kdpl.targets import Target, Teachers


class Distillation(Protocol):
    """The part of the stage-2 module that concerns its teachers."""

    teachers: Teachers
    target: Target

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        ...

    def load_teachers(self) -> None:
        """Load image tower and prompts of each teacher, unless that was done."""
        ...

    def apply_precision(self) -> None:
        """Store the frozen weights in the trainer's precision."""
        ...


class FillTeacherCache(Callback):
    """Computes what the teacher cache lacks, on all processes together, before the first epoch.

    Args:
        views: Views of each image; None takes what the cache has, or as many as there are epochs.
    """

    def __init__(self, views: int | None = None) -> None:
        self.views = views

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill the cache of each teacher, and check that it is intact."""
        data, student = domain_of(trainer), cast(Distillation, pl_module)
        caches: list[FeatureCache] = []
        folders = cache_folders(str(data.teacher_cache), student.teachers.describe())
        for number, (folder, teacher) in enumerate(folders):
            # further teachers see the views of the first
            views = caches[0].manifest if caches else None
            wanted = self.views or max(trainer.max_epochs or 0, 0)
            needed = data.cache_manifest(teacher, data.pool.images, wanted, views)
            images = data.unlabeled_images(needed.resizing)
            same = VIEWS if views else ["views"] if self.views else []
            caches.append(_fill_and_open(trainer, student, number, folder, needed, images, same))
        data.opened_caches = caches


def cache_beside(
    trainer: Trainer,
    student: Distillation,
    number: int,
    pool: FeatureCache,
    images: Sequence[str],
    views: int,
) -> FeatureCache | None:
    """Open, after filling it, the cache of a teacher's features of labelled images.

    It lies beside the cache of the pool.

    None if it does not exist and cannot be written.
    """
    data = domain_of(trainer)
    teacher = student.teachers.describe()[number]
    same_views = pool.manifest.model_copy(update={"views": views})
    needed = data.cache_manifest(teacher, Names.of(images), same_views=same_views)
    # another few-shot sample has a cache of its own
    digest = hashlib.sha256(f"{needed.sources} {views} {needed.view_seed}".encode()).hexdigest()[
        :16
    ]
    folder = pool.folder / f"labelled-{digest}"
    if not folder.exists() and not os.access(pool.folder, os.W_OK):
        return None
    labeled = data.images_of(images, needed.resizing)
    return _fill_and_open(trainer, student, number, folder, needed, labeled, VIEWS)


def _fill_and_open(
    trainer: Trainer,
    student: Distillation,
    number: int,
    folder: Path,
    needed: Manifest,
    images: UnlabeledImages,
    same: Collection[str],
) -> FeatureCache:
    data = domain_of(trainer)
    processes = (trainer.global_rank, trainer.world_size)
    encode = teacher_encoder(trainer, student, number)
    work = Work(images, encode, data.eval_batch_size, data.num_workers, *processes)
    done = fill(folder, needed, work, same)
    trainer.strategy.barrier("kdpl cache")
    cache = FeatureCache.open(folder, needed, same)
    manifest = cache.manifest
    inform(
        f"teacher cache {folder}: complete, {manifest.images} images, {manifest.views} views of "
        f"each{f', {done * trainer.world_size} features computed' if done else ': nothing to do'}"
    )
    return cache


def load_teacher(trainer: Trainer, student: Distillation, number: int) -> FrozenTeacher:
    """Load a teacher in the precision of the training, unless that was done.

    Of several teachers it is the one of this ``number``.
    """
    student.load_teachers()
    teacher = student.teachers.read()[number]
    # outside the precision's context, in which weights would be rounded as they are read
    trainer.precision_plugin.convert_module(teacher)
    student.apply_precision()
    return teacher


def teacher_encoder(
    trainer: Trainer, student: Distillation, number: int
) -> Callable[[Tensor], Tensor]:
    """Return the encoder of ``load_teacher``, of images on the CPU; it loads on its first call."""
    load = cache(partial(load_teacher, trainer, student, number))

    def encode(images: Tensor) -> Tensor:
        teacher = load()
        with trainer.precision_plugin.forward_context():
            return teacher.features(images.to(student.device))

    return encode
