"""Preparation of a student's target, before its first step."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from kdpl.callbacks.teacher_encoder import Distillation, load_teacher, teacher_encoder
from kdpl.clip import ImageTower
from kdpl.data.batches import Batch
from kdpl.data.domain import domain_of
from kdpl.data.inference import infer
from kdpl.data.loader import load_all_views
from kdpl.data.names import Indices
from kdpl.data.parallel import progress_bar
from kdpl.errors import ConfigError
from kdpl.prompts.method import normalized
from kdpl.runtime import plugins
from kdpl.runtime.resizing import Resizing
from kdpl.targets import Target
from kdpl.targets.inputs import Encoder, TargetInputs


def pool_filters(quantile: float | None) -> list[Callback]:
    """Return the callback of a room that chooses among the unlabelled images, if it is asked for.

    It is made by an entry point ``kdpl.pool_filters``. A ConfigError if there is none.
    """
    if quantile is None:
        return []
    kinds = plugins.load_all("pool_filters").values()
    if not kinds:
        raise ConfigError(
            "model.init_args.pool_filter needs the room pool_filter, which was removed: leave it "
            "out"
        )
    return [kind(quantile) for kind in kinds]


class PrepareTargets(Callback):
    """Prepares the target that the student learns, on all processes."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the target, before the training loader is made."""
        self.target.prepare(inputs_of(trainer, cast(Distillation, pl_module)))


def inputs_of(trainer: Trainer, student: Distillation) -> TargetInputs:
    """Return what a target is prepared from, of the fit of a student."""
    data = domain_of(trainer)
    teachers = student.teachers.read()

    # what every process can compute with the others
    def features(images: Sequence[str] | None, views: int, teacher: int = 0) -> Tensor:
        return _teacher_features(trainer, student, images, views, teacher)

    def encode(
        encoder: Encoder, resizing: Resizing, images: Sequence[str] | None, views: int
    ) -> Tensor:
        def encoded(own: Tensor) -> Tensor:
            with trainer.precision_plugin.forward_context():
                return normalized(encoder(own))

        return _mean_features(trainer, student, images, views, resizing, encoded)

    def rows(
        count: int, load: Callable[[Indices], Iterable[Batch]], network: Encoder, title: str
    ) -> Tensor:
        return _rows(trainer, student, count, load, network, title)

    def tower() -> ImageTower:
        return cast(ImageTower, load_teacher(trainer, student, 0).tower)

    def on_first_process(function: Callable[[], object]) -> None:
        if trainer.is_global_zero:
            function()
        trainer.strategy.barrier("kdpl targets")

    # what is known of the run, the dataset and the labels
    return TargetInputs(
        folder=Path(trainer.default_root_dir),
        teacher_folder=student.teachers.first.folder,
        resumes=trainer.ckpt_path is not None,
        teachers=[teacher.vectors for teacher in teachers],
        tuned=any(teacher.tuned for teacher in teachers),
        class_names=data.class_names,
        num_base=data.num_base,
        pool=data.pool.images,
        indices=data.pool.targeted,
        labeled=data.labels.tuning("labeled"),
        val=data.labels.tuning("val"),
        features=features,
        encode=encode,
        rows=rows,
        encoder=teacher_encoder(trainer, student, 0),
        open_image=data.splits.open_image,
        num_workers=data.num_workers,
        tower=tower,
        predict=student.teachers.logits,
        device=student.device,
        on_first_process=on_first_process,
    )


def _teacher_features(
    trainer: Trainer, student: Distillation, images: Sequence[str] | None, views: int, number: int
) -> Tensor:
    """Implement ``FeatureFunction``.

    Features come from the teacher's cache if that has enough views of the pool, and those of
    labelled images from a cache beside it; otherwise the teacher runs.
    """
    encoder = teacher_encoder(trainer, student, number)
    cached = domain_of(trainer).cached_features
    read = cached.means(images, views, number, encoder) if cached is not None else None
    resizing = student.teachers.read()[number].vectors.preprocessing.resizing
    return _mean_features(trainer, student, images, views, resizing, encoder, read)


def _mean_features(
    trainer: Trainer,
    student: Distillation,
    images: Sequence[str] | None,
    views: int,
    resizing: Resizing,
    encoder: Encoder,
    read: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Encode images, or ``read`` their features: each process does its share, and all get all."""
    data = domain_of(trainer)
    if images is None:
        dataset, indices = data.unlabeled_images(resizing), data.pool.targeted
    else:
        dataset, indices = data.images_of(images, resizing), np.arange(len(images))
    if read is not None:
        own = indices[trainer.global_rank :: trainer.world_size].tolist()
        with progress_bar(shown=trainer.is_global_zero) as progress:
            cached = progress.track(own, description="features from the cache")
            parts = [read(index).to(student.device)[None] for index in cached]
        return F.normalize(_joined(trainer, student, parts, len(indices)), dim=1)

    def load(rows: Indices) -> Iterable[Batch]:
        own, at_once = indices[rows].tolist(), max(1, data.eval_batch_size // views)
        chunks = [own[start : start + at_once] for start in range(0, len(own), at_once)]
        return load_all_views(dataset, views, chunks, data.num_workers)

    def mean_over_views(images: Tensor) -> Tensor:
        return encoder(images.flatten(0, 1)).view(len(images), views, -1).mean(dim=1)

    means = _rows(trainer, student, len(indices), load, mean_over_views, "features of images")
    return F.normalize(means, dim=1)


def _rows(
    trainer: Trainer,
    student: Distillation,
    count: int,
    load: Callable[[Indices], Iterable[Batch]],
    network: Encoder,
    title: str,
) -> Tensor:
    """Implement ``RowsFunction``: each process does its share, and all get all."""
    own = np.arange(trainer.global_rank, count, trainer.world_size)
    with progress_bar(shown=trainer.is_global_zero) as progress:
        batches = progress.track(load(own), description=title)
        parts = [rows.float() for rows, _ in infer(network, batches, student.device)]
    return _joined(trainer, student, parts, count)


def _joined(trainer: Trainer, student: Distillation, parts: list[Tensor], images: int) -> Tensor:
    """Return the rows [images, K] of all processes together, of which ``parts`` are this one's."""
    # a process without an image learns the width from the others
    width = torch.tensor(parts[0].shape[1] if parts else 0, device=student.device)
    width = trainer.strategy.reduce(width, reduce_op="max")
    rows = torch.zeros(images, int(width), device=student.device)
    rows[trainer.global_rank :: trainer.world_size] = torch.cat([rows[:0], *parts])
    total: Tensor = trainer.strategy.reduce(rows, reduce_op="sum")
    return total
