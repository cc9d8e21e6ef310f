"""The teacher's features of the unlabelled images, computed before a student's training starts."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.data.feature_cache import FeatureCache, Work, fill
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
        """Fill the cache, and check that it is intact."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        student: Any = pl_module
        folder = Path(data.teacher_cache).expanduser()
        size, processes = student.teacher_image_size, (trainer.global_rank, trainer.world_size)
        needed = data.cache_manifest(student.teacher_fingerprint, student.teacher_width, size, self.views)
        images = data.unlabeled_images(size)
        work = Work(images, teacher_encoder(trainer, student), data.eval_batch_size, data.num_workers, *processes)
        with progress_bar(shown=trainer.is_global_zero) as progress:
            task = progress.add_task("teacher's features", total=None)

            def show(done: int, total: int) -> None:
                # the processes share the work evenly
                progress.update(task, completed=done * trainer.world_size, total=total * trainer.world_size)

            done = fill(folder, needed, work, self.views, show)
        trainer.strategy.barrier("kdpl cache")
        manifest = FeatureCache.open(folder, needed, None, *processes).manifest
        inform(
            f"teacher cache {folder}: complete, {manifest.images} images, {manifest.views} views of each"
            f"{f', {done * trainer.world_size} features computed' if done else ': nothing to do'}"
        )


def teacher_encoder(trainer: Trainer, student: Any) -> Callable[[Tensor], Tensor]:
    """Return the teacher's encoder of images on the CPU, as training has it; it is loaded when it is first called."""

    @cache
    def load() -> Any:
        # outside the precision's context, in which weights would be rounded as they are read
        teacher = trainer.precision_plugin.convert_module(student.load_teacher())
        student.store_frozen()
        return teacher

    def encode(images: Tensor) -> Tensor:
        teacher = load()
        with trainer.precision_plugin.forward_context():
            features: Tensor = teacher.features(images.to(student.device))
        return features

    return encode
