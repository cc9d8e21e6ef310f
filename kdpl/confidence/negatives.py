"""Negative vectors: the teacher's text features of words for things that are not a class."""

from pathlib import Path
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer

from kdpl.callbacks.handover import Handover
from kdpl.class_vectors import ClassVectors
from kdpl.confidence.words import NEGATIVE_VECTORS_FILE, everyday_words, other_than, read_words
from kdpl.data.domain import domain_of
from kdpl.errors import ArtifactError
from kdpl.student import StudentDistillation
from kdpl.teacher import TeacherPromptTuning


def callbacks(module: LightningModule) -> list[Callback]:
    """Return the callbacks for negative vectors of either stage."""
    if isinstance(module, TeacherPromptTuning):
        # Lightning sets the attribute without declaring it
        configured = any(isinstance(c, NegativeVectors) for c in module.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if configured else [NegativeVectors()]
    return [CopyNegativeVectors()] if isinstance(module, StudentDistillation) else []


class NegativeVectors(Handover):
    """Writes text features of words for things that are not a class, at the end of stage 1.

    Args:
        words: Text file with a word on each line, instead of everyday words.
    """

    warns = False  # the class vectors do

    def __init__(self, words: str | None = None) -> None:
        super().__init__()
        self.words = everyday_words() if words is None else read_words(words)
        self.source = f"negative words {words}"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise a ConfigError if a word is a class, or too long for the text tower."""
        teacher = cast(TeacherPromptTuning, pl_module)
        teacher.require_texts(self._negative_words(teacher))

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Encode on all processes, write on one.

        The class vectors are written later, since they mark a finished stage.
        """
        teacher = cast(TeacherPromptTuning, pl_module)
        words = self._negative_words(teacher)
        vectors = ClassVectors.of(
            teacher.tuned_prompts(), teacher.encode_names(words).cpu(), words, None
        )
        if trainer.is_global_zero:
            vectors.save(folder / NEGATIVE_VECTORS_FILE)

    def _negative_words(self, teacher: TeacherPromptTuning) -> list[str]:
        names = domain_of(teacher.trainer).class_names
        return [self.words[i] for i in other_than(names, self.words, self.source)]


class CopyNegativeVectors(Callback):
    """Copies the teacher's negative vectors into the student's folder at the start of its fit."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the vectors if there are any; an ArtifactError if another teacher made them."""
        student = cast(StudentDistillation, pl_module)
        file = student.teacher_folder / NEGATIVE_VECTORS_FILE
        if not trainer.is_global_zero or not file.is_file():
            return
        vectors = ClassVectors.load(file)
        if vectors.clip.fingerprint != student.vectors.clip.fingerprint:
            return  # a student with text features of its own
        if vectors.teacher != student.vectors.teacher:
            raise ArtifactError(
                f"{file} was made by another tuned teacher than the class vectors: remove it, or "
                "run stage 1 again"
            )
        other_than(student.vectors.class_names, vectors.class_names, str(file))
        vectors.save(Path(trainer.default_root_dir) / NEGATIVE_VECTORS_FILE)
