"""A finished student as the teacher of another one, whose targets are refined by what the first has learnt to see."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from kdpl.class_vectors import ClassVectors, FrozenTeacher
from kdpl.classifier import Classifier
from kdpl.classifier.folder import Unbuilt
from kdpl.errors import ArtifactError, ConfigError
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.runtime.run_folder import CLASSIFIER_FOLDER, PROMPTS_FILE


class StudentTeacher(FrozenTeacher):
    """The classifier in a student's run folder, with the interface of a tuned teacher (idea: arXiv 1805.04770).

    An ArtifactError if it is damaged, or has other class vectors than these.
    """

    def __init__(self, folder: Path, vectors: ClassVectors) -> None:
        stored = Unbuilt.read(folder / CLASSIFIER_FOLDER)
        if not stored.vectors.vectors.equal(vectors.vectors):
            raise ArtifactError(
                f"the class vectors are not those of the student in {folder}: give a student with the class vectors of "
                "its teacher, and no others beside it"
            )
        own = replace(
            vectors,
            teacher=stored.fingerprint(),
            preprocessing=stored.settings.preprocessing,
            logit_scale=stored.settings.logit_scale,
        )
        super().__init__(folder, own)
        self.label_head = stored.label_head
        self.encoder: StudentEncoder | None = None

    def load(self) -> None:
        """Load the encoder, unless that was done; an ArtifactError if it is damaged."""
        if self.encoder is None:
            encoder = Classifier.load(self.folder / CLASSIFIER_FOLDER).encoder
            self.encoder = encoder.requires_grad_(False).to(self.head.class_vectors.device)
            self.tower = encoder.tower.module

    def encode(self, images: Tensor) -> Tensor:
        """Encode images uint8 [B, 3, S, S] into normalised features, float32 [B, D]; a ConfigError before ``load``."""
        if self.encoder is None:
            raise ConfigError("the teacher's encoder is not loaded: call load() first")
        features: Tensor = self.encoder(images)
        return features

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [B, C] of features [B, D], those of both heads if it has two."""
        logits = super().logits(features)
        return logits if self.label_head is None else self.label_head.mix(logits, features)


def open_teacher(folder: Path, vectors: ClassVectors) -> FrozenTeacher:
    """Return the teacher of a run's folder, whose class vectors are these: a tuned one, or a student."""
    is_student = (folder / CLASSIFIER_FOLDER).is_dir() and not (folder / PROMPTS_FILE).exists()
    return StudentTeacher(folder, vectors) if is_student else FrozenTeacher(folder, vectors)
