"""The teacher's features of the unlabelled images, computed before a student's training starts."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from kdpl.data.datasets import AllViews, UnlabeledImages
from kdpl.data.feature_cache import FeatureCache, Manifest, require_same_views
from kdpl.data.feature_filling import Work, fill
from kdpl.data.parallel import progress_bar
from kdpl.runtime.messages import inform


class FillTeacherCache(Callback):
    """Computes what the teacher cache lacks, on all processes together, before the first epoch.

    Args:
        views: Views of each image; None takes what the cache has, or as many as there are epochs.
    """

    def __init__(self, views: int | None = None) -> None:
        self.views = views

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill the cache of each teacher, and check that it is intact."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        caches: list[FeatureCache] = []
        for number, (folder, teacher) in enumerate(data.cache_folders()):
            # further teachers see the views of the first
            views, seed = (caches[0].manifest.views, caches[0].manifest.view_seed) if caches else (self.views, None)
            needed = data.cache_manifest(teacher, views or max(trainer.max_epochs or 0, 0), seed)
            caches.append(self._fill(trainer, pl_module, number, folder, needed, views))
            require_same_views(caches)

    def _fill(
        self, trainer: Trainer, student: Any, number: int, folder: Path, needed: Manifest, views: int | None
    ) -> FeatureCache:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images, processes = data.unlabeled_images(needed.resizing), (trainer.global_rank, trainer.world_size)
        encode = teacher_encoder(trainer, student, number)
        work = Work(images, encode, data.eval_batch_size, data.num_workers, *processes)
        with progress_bar(shown=trainer.is_global_zero) as progress:
            task = progress.add_task("teacher's features", total=None)

            def show(done: int, total: int) -> None:
                # the processes share the work evenly
                progress.update(task, completed=done * trainer.world_size, total=total * trainer.world_size)

            done = fill(folder, needed, work, views, show)
        trainer.strategy.barrier("kdpl cache")
        cache = FeatureCache.open(folder, needed, None, *processes)
        manifest = cache.manifest
        inform(
            f"teacher cache {folder}: complete, {manifest.images} images, {manifest.views} views of each"
            f"{f', {done * trainer.world_size} features computed' if done else ': nothing to do'}"
        )
        return cache


def teacher_encoder(trainer: Trainer, student: Any, number: int = 0) -> Callable[[Tensor], Tensor]:
    """Return a teacher's encoder of images on the CPU, as training has it; it is loaded when it is first called.

    Of several teachers it is that of the one of this ``number``, by default the first.
    """

    @cache
    def load() -> Any:
        # outside the precision's context, in which weights would be rounded as they are read
        trainer.precision_plugin.convert_module(student.load_teacher())
        student.store_frozen()
        return student.teachers[number]

    def encode(images: Tensor) -> Tensor:
        teacher = load()
        with trainer.precision_plugin.forward_context():
            features: Tensor = teacher.features(images.to(student.device))
        return features

    return encode


def mean_features(
    trainer: Trainer,
    student: Any,
    images: UnlabeledImages,
    indices: npt.NDArray[np.int64],
    views: int,
    number: int = 0,
    cache: FeatureCache | None = None,
) -> Tensor:
    """A teacher's normalised mean feature over some views of each of these images, float32 [N, D].

    Every process computes its share, and has all of them in the end. The images are made for that teacher, which
    is the one of this ``number`` among several; its cache, if it has enough views, saves the work.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    own = indices[trainer.global_rank :: trainer.world_size]
    width = student.teachers[number].vectors.vectors.shape[1]
    features = torch.zeros(len(indices), width, device=student.device)
    with progress_bar(shown=trainer.is_global_zero) as progress:
        if cache is not None and cache.manifest.views >= views:
            rows = progress.track(own.tolist(), description="features from the cache")
            parts = [cache.mean(index, views).to(student.device)[None] for index in rows]
        else:
            loader = DataLoader(
                AllViews(images, views),
                batch_size=max(1, data.eval_batch_size // views),
                sampler=own,
                num_workers=data.num_workers,
                generator=torch.Generator(),
            )
            encode = teacher_encoder(trainer, student, number)
            batches = progress.track(loader, description="teacher's features")
            parts = [encode(each.flatten(0, 1)).view(len(each), views, -1).mean(dim=1) for each in batches]
    features[trainer.global_rank :: trainer.world_size] = torch.cat([features[:0], *parts])
    total: Tensor = trainer.strategy.reduce(features, reduce_op="sum")
    return F.normalize(total, dim=1)
