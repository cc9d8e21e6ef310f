"""Inputs of targets: teachers, the pool, the labels that may be seen, and features of images."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional as F

from kdpl.clip import ImageTower
from kdpl.data.batches import Batch
from kdpl.data.domain import domain_of
from kdpl.data.inference import infer
from kdpl.data.names import Indices
from kdpl.data.parallel import progress_bar
from kdpl.preparation.teacher_encoder import load_teacher, teacher_encoder
from kdpl.preparation.views import load_all_views
from kdpl.prompts.method import normalized
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import PROMPTS_FILE
from kdpl.student import StudentDistillation

Encoder = Callable[[Tensor], Tensor]
"""Encodes images uint8 [B, 3, S, S] on the device into features [B, D]."""


class TargetInputs:
    """What a target is prepared from before the first step of a fit, the same on every process.

    All processes call its functions together: each does its share, and all get the whole result.

    Attributes:
        folder: The run's folder.
        teacher_folder: The run's folder of the first teacher.
        resumes: Whether the fit resumes from a checkpoint.
        teachers: Class vectors of each teacher, the first one's first.
        class_names: The names of the C classes, by label.
        num_base: Number of base classes, which come first; None without such a split.
        pool: Sources of all unlabelled images.
        indices: Those of them that need a target, as they are distilled on or held out to compare
            student and target, int64 [N].
        labeled: Labelled training images of the classes that the teacher was tuned on.
        val: Validation images of these classes.
        groups: Groups of both by source.
        open_image: Opens a source as an RGB image.
        num_workers: Worker processes that load images.
        device: Where the targets are used.
        encoder: The first teacher, of images uint8 [B, 3, S, S]; it is loaded on the first call.
        predict: Function that returns the teachers' logits [N, C] of their features side by side,
            [N, D_1 + … + D_M].
    """

    def __init__(self, trainer: Trainer, student: StudentDistillation) -> None:
        self._trainer, self._student, self._data = trainer, student, domain_of(trainer)
        # the run and its teachers
        self.folder = Path(trainer.default_root_dir)
        self.teacher_folder = student.teachers.first.folder
        self.resumes = trainer.ckpt_path is not None
        self.teachers = [teacher.vectors for teacher in student.teachers.read()]
        self.encoder = teacher_encoder(trainer, student, 0)
        self.predict = student.teachers.logits
        self.device = student.device
        # the images, and the labels that may be seen
        self.class_names = self._data.class_names
        self.num_base = self._data.num_base
        self.pool = self._data.pool.images
        self.indices = self._data.pool.targeted
        self.labeled = self._data.labels.tuning("labeled")
        self.val = self._data.labels.tuning("val")
        self.groups = self._data.splits.groups
        self.open_image = self._data.splits.open_image
        self.num_workers = self._data.num_workers

    @property
    def tuned(self) -> bool:
        """Whether a teacher was tuned on labels, and so may have seen those of ``labeled``."""
        folders = [teacher.folder for teacher in self._student.teachers.read()]
        return any(TunedPrompts.load(folder / PROMPTS_FILE).tensors for folder in folders)

    def features(self, images: Sequence[str] | None, views: int, teacher: int = 0) -> Tensor:
        """Return a teacher's normalised mean features over the first views of each image, [N, D].

        They come from the teacher's cache if that has enough views of the pool, and those of
        labelled images from a cache beside it; otherwise the teacher runs.

        Args:
            images: Sources of labelled or validation images; None: the unlabelled images that need
                a target.
            views: Views of each image.
            teacher: Index of the teacher, among several.
        """
        encoder = teacher_encoder(self._trainer, self._student, teacher)
        cached = self._data.cached_features
        read = cached.means(images, views, teacher, encoder) if cached is not None else None
        if read is None:
            resizing = self.teachers[teacher].preprocessing.resizing
            return self._mean_features(encoder, resizing, images, views)
        indices = self.indices if images is None else np.arange(len(images))
        own = indices[self._trainer.global_rank :: self._trainer.world_size].tolist()
        with progress_bar(shown=self._trainer.is_global_zero) as progress:
            known = progress.track(own, description="features from the cache")
            parts = [read(index).to(self.device)[None] for index in known]
        return F.normalize(self._joined(parts, len(indices)), dim=1)

    def encode(
        self, encoder: Encoder, resizing: Resizing, images: Sequence[str] | None, views: int
    ) -> Tensor:
        """Return the features that another encoder makes of images, as ``features`` does.

        ``resizing`` is how it takes images.
        """

        def encoded(own: Tensor) -> Tensor:
            with self._trainer.precision_plugin.forward_context():
                return normalized(encoder(own))

        return self._mean_features(encoded, resizing, images, views)

    def rows(
        self, count: int, load: Callable[[Indices], Iterable[Batch]], network: Encoder, title: str
    ) -> Tensor:
        """Return a row for each image in their order, float32 [N, K].

        Args:
            count: Number N of images.
            load: Loads batches of those images whose numbers, int64 [n], it is given, in order.
            network: Makes rows [B, K] of the images of a batch, which are on the device.
            title: Words beside the progress bar.
        """
        own = np.arange(self._trainer.global_rank, count, self._trainer.world_size)
        with progress_bar(shown=self._trainer.is_global_zero) as progress:
            batches = progress.track(load(own), description=title)
            parts = [rows.float() for rows, _ in infer(network, batches, self.device)]
        return self._joined(parts, count)

    def tower(self) -> ImageTower:
        """Return the first teacher's image tower, loading it if need be."""
        return cast(ImageTower, load_teacher(self._trainer, self._student, 0).tower)

    def on_first_process(self, function: Callable[[], object]) -> None:
        """Call a function on the first process, for which the others wait."""
        if self._trainer.is_global_zero:
            function()
        self._trainer.strategy.barrier("kdpl targets")

    def _mean_features(
        self, encoder: Encoder, resizing: Resizing, images: Sequence[str] | None, views: int
    ) -> Tensor:
        data = self._data
        if images is None:
            dataset, indices = data.unlabeled_images(resizing), self.indices
        else:
            dataset, indices = data.images_of(images, resizing), np.arange(len(images))

        def load(rows: Indices) -> Iterable[Batch]:
            own, at_once = indices[rows].tolist(), max(1, data.eval_batch_size // views)
            chunks = [own[start : start + at_once] for start in range(0, len(own), at_once)]
            return load_all_views(dataset, views, chunks, data.num_workers)

        def mean_over_views(images: Tensor) -> Tensor:
            return encoder(images.flatten(0, 1)).view(len(images), views, -1).mean(dim=1)

        means = self.rows(len(indices), load, mean_over_views, "features of images")
        return F.normalize(means, dim=1)

    def _joined(self, parts: list[Tensor], images: int) -> Tensor:
        """Return the rows [images, K] of all processes, of which ``parts`` are this one's."""
        # a process without an image learns the width from the others
        width = torch.tensor(parts[0].shape[1] if parts else 0, device=self.device)
        width = self._trainer.strategy.reduce(width, reduce_op="max")
        rows = torch.zeros(images, int(width), device=self.device)
        rows[self._trainer.global_rank :: self._trainer.world_size] = torch.cat([rows[:0], *parts])
        total: Tensor = self._trainer.strategy.reduce(rows, reduce_op="sum")
        return total
