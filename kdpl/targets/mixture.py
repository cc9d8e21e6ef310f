"""Several teachers as one: what the student learns is the mean of their predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from kdpl.class_vectors import ClassVectors, FrozenTeacher
from kdpl.tasks import MULTI_CLASS, Task


class TeacherMixture(nn.Module):
    """The teachers of several runs, with the interface of a ``FrozenTeacher``.

    p(x) = Σ_m p_m(x) / M, where p_m is the prediction of teacher m with its own CLIP, image size, class vectors and
    scale. Its features are those of the teachers side by side.

    Args:
        first: The teacher whose class vectors the student has.
        more: Run folders of the others.
    """

    task: Task = MULTI_CLASS

    def __init__(self, first: FrozenTeacher, more: Sequence[str]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList([first])
        self._unopened = [Path(folder) for folder in more]

    @property
    def opened(self) -> bool:
        """Whether ``open`` was called."""
        return not self._unopened

    @property
    def vectors(self) -> ClassVectors:
        """Class vectors of the first teacher."""
        return cast(FrozenTeacher, self.teachers[0]).vectors

    def open(self) -> list[FrozenTeacher]:
        """Return the teachers; the first call reads the class vectors of all but the first, which a test does not need.

        An ArtifactError if they are missing, damaged, or for other class names than the first teacher's.
        """
        first = cast(FrozenTeacher, self.teachers[0])
        while self._unopened:
            folder = self._unopened[0]
            vectors = ClassVectors.of_teacher(str(folder))
            vectors.require_names(first.vectors.class_names, str(folder), str(first.folder))
            self.teachers.append(FrozenTeacher(folder, vectors).to(first.head.class_vectors.device))
            del self._unopened[0]
        return cast(list[FrozenTeacher], list(self.teachers))

    def load(self) -> None:
        """Load all teachers, unless that was done; errors are those of ``FrozenTeacher``."""
        for teacher in self.open():
            teacher.load()

    def features(self, *views: Tensor) -> Tensor:
        """Encode views into the teachers' normalised features side by side, float32 [B, D_1 + … + D_M].

        ``views`` are the same ones for each teacher, uint8 [B, 3, S, S] with its own S.
        """
        return torch.cat([teacher.features(own) for teacher, own in zip(self.open(), views, strict=True)], dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """Return log p, float32 [B, C], of features [B, D_1 + … + D_M]."""
        teachers = self.open()
        widths = [teacher.vectors.vectors.shape[1] for teacher in teachers]
        parts = zip(teachers, torch.split(features, widths, dim=1), strict=True)
        return self.task.mean(torch.stack([teacher.logits(part) for teacher, part in parts]))
