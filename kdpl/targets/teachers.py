"""The teachers of a student: one or several, as a module carries them along and a checkpoint names them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdpl.class_vectors import ClassVectors, FrozenTeacher
from kdpl.clip import Frozen
from kdpl.data.needs import TeacherDescription
from kdpl.errors import ArtifactError
from kdpl.runtime.messages import inform
from kdpl.targets.mixture import TeacherMixture

_KEY = "kdpl_teacher"
_MORE_KEY = "kdpl_more_teachers"


class Teachers(Frozen[FrozenTeacher | TeacherMixture]):
    """Carries the one teacher, or the mixture of several.

    Args:
        folder: Run folder of the first, whose class vectors the student has.
        vectors: Those class vectors.
        more: Run folders of the others.
    """

    def __init__(self, folder: Path, vectors: ClassVectors, more: Sequence[str]) -> None:
        first = FrozenTeacher(folder, vectors)
        super().__init__(TeacherMixture(first, more) if more else first)

    @property
    def each(self) -> list[FrozenTeacher]:
        """The teachers, of which all but the first are read when they are first asked for."""
        return [self.module] if isinstance(self.module, FrozenTeacher) else self.module.open()

    def describe(self) -> list[TeacherDescription]:
        """Describe each, as a cache of its features is described."""
        vectors = [teacher.vectors for teacher in self.each]
        return [TeacherDescription(v.teacher, v.vectors.shape[1], v.preprocessing.resizing) for v in vectors]

    def load(self, compiled: bool = False) -> FrozenTeacher | TeacherMixture:
        """Load image tower and prompts of each, unless that was done; returns the teacher, or the mixture."""
        for teacher in self.each:
            if teacher.tower is None:
                inform(f"loading the teacher of {teacher.folder}")
                teacher.load()
                if compiled and teacher.tower is not None:
                    teacher.tower.compile_parts()
        return self.module

    def note_in(self, checkpoint: dict[str, Any]) -> None:
        """Note the fingerprints."""
        checkpoint[_KEY], *more = (teacher.fingerprint for teacher in self.describe())
        if more:
            checkpoint[_MORE_KEY] = more

    def require_in(self, checkpoint: dict[str, Any]) -> None:
        """Raise an ArtifactError for a checkpoint that is not a student's of these teachers."""
        if _KEY not in checkpoint:
            raise ArtifactError("this is not a student checkpoint: give one from a StudentDistillation run")
        before = [checkpoint[_KEY], *checkpoint.get(_MORE_KEY, [])]
        # a test needs the first teacher alone, and reads no other
        known = isinstance(self.module, FrozenTeacher) or self.module.opened
        own = (
            [teacher.vectors.teacher for teacher in self.each] if known else [self.module.vectors.teacher, *before[1:]]
        )
        if before != own:
            raise ArtifactError(
                "the checkpoint was distilled from a different teacher than the one in the settings: use that of its "
                "run, or start in a new folder"
            )
