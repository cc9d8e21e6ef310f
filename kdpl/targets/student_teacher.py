"""A finished student as the teacher of another one, whose targets are refined by what the first has learnt to see."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from kdpl.class_vectors import ClassVectors, FrozenTeacher
from kdpl.classifier import Classifier
from kdpl.errors import ArtifactError
from kdpl.runtime.run_folder import CLASSIFIER_FOLDER, PROMPTS_FILE


class StudentTeacher(FrozenTeacher):
    """The classifier in a student's run folder, with the interface of a tuned teacher (idea: arXiv 1805.04770).

    An ArtifactError if it is damaged, or has other class vectors than these.
    """

    def __init__(self, folder: Path, vectors: ClassVectors) -> None:
        classifier = Classifier.load(folder / CLASSIFIER_FOLDER)
        if not classifier.vectors.vectors.equal(vectors.vectors):
            raise ArtifactError(
                f"the class vectors are not those of the student in {folder}: give a student with the class vectors of "
                "its teacher, and no others beside it"
            )
        teacher, scale = classifier.fingerprint(), classifier.logit_scale
        own = replace(vectors, teacher=teacher, preprocessing=classifier.preprocessing, logit_scale=scale)
        super().__init__(folder, own)
        self.classifier = classifier

    def load(self) -> None:
        """Do nothing, as the encoder is small and loaded already."""

    def encode(self, images: Tensor) -> Tensor:
        """Encode images uint8 [B, 3, S, S] into normalised features, float32 [B, D]."""
        features: Tensor = self.classifier.encoder(images)
        return features

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [B, C] of features [B, D], those of both heads if it has two."""
        return self.classifier.logits(features)


def open_teacher(folder: Path, vectors: ClassVectors) -> FrozenTeacher:
    """Return the teacher of a run's folder, whose class vectors are these: a tuned one, or a student."""
    is_student = (folder / CLASSIFIER_FOLDER).is_dir() and not (folder / PROMPTS_FILE).exists()
    return StudentTeacher(folder, vectors) if is_student else FrozenTeacher(folder, vectors)
