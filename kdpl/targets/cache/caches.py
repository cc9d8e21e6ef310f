"""The teacher's cache of a fit: opened, or filled before it."""

from pathlib import Path

from kdpl.runtime.messages import inform
from kdpl.targets.cache.feature_cache import FeatureCache, fill, manifest_of
from kdpl.targets.preparation import Preparation
from kdpl.targets.shards import Work


def teacher_features(preparation: Preparation) -> FeatureCache | None:
    """Open the teacher's complete cache; None if the fit has none."""
    if preparation.teacher_cache is None:
        return None
    data, teacher = preparation.data, preparation.teacher.description
    needed = manifest_of(data, teacher, data.pool.images)
    return FeatureCache.open(Path(preparation.teacher_cache).expanduser(), needed)


def fill_cache(preparation: Preparation, views: int | None = None) -> FeatureCache:
    """Compute what the teacher's cache lacks, on all processes together.

    A teacher that was loaded for this stays on the device; a rerun with a complete cache does
    without it.

    Args:
        preparation: The fit.
        views: Views of each image; None: as many as the cache has, or as there are epochs.
    """
    trainer, data = preparation.trainer, preparation.data
    folder = Path(str(preparation.teacher_cache)).expanduser()
    wanted = views or max(trainer.max_epochs or 0, 0)
    teacher, same = preparation.teacher.description, ["views"] if views else []
    needed = manifest_of(data, teacher, data.pool.images, wanted)
    images = data.unlabeled_images(teacher.resizing)
    processes = (trainer.global_rank, trainer.world_size)
    work = Work(images, preparation.encoder(), data.eval_batch_size, data.num_workers, *processes)
    done = fill(folder, needed, work, same) * trainer.world_size
    trainer.strategy.barrier("kdpl cache")
    cache = FeatureCache.open(folder, needed, same)
    inform(
        f"teacher cache {folder}: complete, {len(images)} images, {cache.views} views of "
        f"each{f', {done} features computed' if done else ': nothing to do'}"
    )
    return cache
