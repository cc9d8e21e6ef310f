"""The teacher's features of the unlabelled images, computed before a student's training starts."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.data.feature_cache import FeatureCache, Work, fill, verify
from kdpl.data.parallel import progress_bar
from kdpl.runtime.messages import inform

# relative distance of a feature that is computed again: float16 rounds by 0.0003, and kernels may differ a little
_TOLERANCE = 2e-3
# towers in 16 bits round all the way through
_TOLERANCE_16_BIT = 5e-2


class FillTeacherCache(Callback):
    """Computes what the teacher cache lacks, on all processes together, before the first epoch.

    Args:
        views: Views of each image; None takes what the cache has, or as many as there are epochs.
        entries: Random entries to compute again afterwards, and compare.
    """

    def __init__(self, views: int | None = None, entries: int = 0) -> None:
        self.views = views
        self.entries = entries

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fill the cache, and verify entries if asked to."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        student: Any = pl_module
        folder = Path(data.teacher_cache).expanduser()
        needed = data.cache_manifest(student.teacher_fingerprint, student.teacher_width, student.image_size, self.views)
        images, processes = data.unlabeled_images(student.image_size), (trainer.global_rank, trainer.world_size)
        work = Work(images, _encoder(trainer, student), data.eval_batch_size, data.num_workers, *processes)
        with progress_bar(shown=trainer.is_global_zero) as progress:
            task = progress.add_task("teacher's features", total=None)

            def show(done: int, total: int) -> None:
                # the processes share the work evenly
                progress.update(task, completed=done * trainer.world_size, total=total * trainer.world_size)

            done = fill(folder, needed, work, self.views, show)
        trainer.strategy.barrier("kdpl cache")
        filled = FeatureCache.open(folder, needed, None, *processes)
        manifest = filled.manifest
        inform(
            f"teacher cache {folder}: complete, {manifest.images} images, {manifest.views} views of each"
            f"{f', {done * trainer.world_size} features computed' if done else ': nothing to do'}"
        )
        if self.entries:
            exact = str(trainer.precision).startswith("32")
            verify(filled, work, self.entries, _TOLERANCE if exact else _TOLERANCE_16_BIT)
            trainer.strategy.barrier("kdpl cache")
            inform(f"{self.entries} entries computed again: all equal to those in the cache")


def _encoder(trainer: Trainer, student: Any) -> Callable[[Tensor], Tensor]:
    @cache
    def load() -> Any:
        # outside the precision's context, in which weights would be rounded as they are read
        return trainer.precision_plugin.convert_module(student.load_teacher())

    def encode(images: Tensor) -> Tensor:
        teacher = load()
        with trainer.precision_plugin.forward_context():
            features: Tensor = teacher.features(images.to(student.device))
        return features

    return encode
