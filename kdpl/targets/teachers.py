"""The teachers of a student, as a frozen part of its module."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from kdpl.class_vectors import ClassVectors, FrozenTeacher
from kdpl.clip import Frozen
from kdpl.data.batches import UnlabeledBatch
from kdpl.data.needs import TeacherDescription
from kdpl.errors import ConfigError
from kdpl.runtime.messages import inform
from kdpl.runtime.resizing import Resizing
from kdpl.tasks import MULTI_CLASS, Task


class Teachers(Frozen[nn.ModuleList]):
    """One teacher, or several whose predictions are averaged.

    p(x) = Σ_m p_m(x) / M, where p_m is the prediction of teacher m with its CLIP, image size, class
    vectors and scale. The features of several teachers are concatenated.

    Args:
        folders: Run folders of the teachers. The student has the class vectors of the first.
        class_vectors: File of class vectors of the first teacher; None: the file in its folder.

    Attributes:
        task: The student's task; it averages the predictions of several teachers.
    """

    task: Task = MULTI_CLASS

    def __init__(self, folders: Sequence[str], class_vectors: str | None = None) -> None:
        folder, *more = folders
        vectors = ClassVectors.of_teacher(folder, class_vectors)
        super().__init__(nn.ModuleList([FrozenTeacher(Path(folder), vectors)]))
        self._unread = [Path(run) for run in more]

    @property
    def first(self) -> FrozenTeacher:
        """The first teacher, whose class vectors the student has."""
        return cast(FrozenTeacher, self.module[0])

    def read(self) -> list[FrozenTeacher]:
        """Return the teachers; reads the class vectors of all but the first once.

        A test does not read them. An ArtifactError if class vectors are missing, damaged, or for
        other class names than the first teacher's.
        """
        # one at a time, so that an error leaves the rest unread
        first = self.first
        while self._unread:
            folder = self._unread[0]
            vectors = ClassVectors.of_teacher(str(folder))
            vectors.require_names(first.vectors.class_names, str(folder), str(first.folder))
            vectors.require_task(first.vectors.task, str(folder), str(first.folder))
            self.module.append(FrozenTeacher(folder, vectors).to(first.head.class_vectors.device))
            del self._unread[0]
        return cast(list[FrozenTeacher], list(self.module))

    def describe(self) -> list[TeacherDescription]:
        """Return the description of each teacher that a cache is checked against."""
        vectors = [teacher.vectors for teacher in self.read()]
        return [
            TeacherDescription(v.teacher, v.vectors.shape[1], v.preprocessing.resizing)
            for v in vectors
        ]

    def load(self, compiled: bool = False) -> None:
        """Load image tower and prompts of each teacher once; errors as in ``FrozenTeacher``."""
        for teacher in self.read():
            if teacher.tower is None:
                inform(f"loading the teacher of {teacher.folder}")
                teacher.load()
                if compiled and teacher.tower is not None:
                    teacher.tower.compile_parts()

    def features_of(self, batch: UnlabeledBatch, student: Resizing) -> Tensor:
        """Return the teachers' features of a batch, float32 [B, D_1 + … + D_M], cached or new.

        ``student`` is the resizing of ``batch.images``. A ConfigError if the batch lacks the view
        for a teacher.
        """
        if batch.teacher_features is not None:
            return batch.teacher_features.float()
        # the view of each teacher, by its resizing
        views = {student: batch.images, **batch.teacher_views}
        resizings = [teacher.vectors.preprocessing.resizing for teacher in self.read()]
        if not views.keys() >= {*resizings}:
            ways = len({student, *resizings})
            raise ConfigError(
                f"a batch has {len(views)} views of each image, but student and teachers resize "
                f"images in {ways} ways: "
                "let the datamodule make a view for each, as DomainDataModule does"
            )
        return self.features(*(views[resizing] for resizing in resizings))

    def features(self, *views: Tensor) -> Tensor:
        """Encode views into the normalised features of each teacher, float32 [B, D_1 + … + D_M].

        ``views`` are the same crops of the same images for each teacher: uint8 [B, 3, S, S] with
        the teacher's image size S. The towers compute in the caller's autocast context.
        """
        pairs = zip(self.read(), views, strict=True)
        return torch.cat([teacher.features(view) for teacher, view in pairs], dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [B, C] of the teachers' mean, of features [B, D_1 + … + D_M]."""
        teachers = self.read()
        if len(teachers) == 1:
            return teachers[0].logits(features)
        # split the features by teacher, and average the predictions
        widths = [teacher.vectors.vectors.shape[1] for teacher in teachers]
        parts = zip(teachers, torch.split(features, widths, dim=1), strict=True)
        return self.task.mean(torch.stack([teacher.logits(part) for teacher, part in parts]))
