"""Scores of held-out images at each level of a tree, and thresholds for a wanted error."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from kdpl.classifier import Classifier
from kdpl.clip.modules import cosine_logits
from kdpl.confidence.held_out import CONFIDENCE, HeldOutScores, require_share, to_calibrate
from kdpl.confidence.student_outputs import LearnedCompanion, OfClassifier, StudentOutputs
from kdpl.confidence.taxonomy.tree import Taxonomy
from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.artifacts import metadata
from kdpl.runtime.class_names import ClassName
from kdpl.tasks import MULTI_CLASS, DecisionRule, Predicted, Prediction

NAME, LEVEL = "taxonomy", "level"

FILE = "taxonomy.csv"
"""Table of the tree in the folder of a run."""

_STRICTEST = 0.25
"""Share of a level's images that its strictest threshold accepts; with less, one error ends it."""

Thresholds = Sequence[float]
"""Threshold of each level, from 1 on; infinite if the level answers nothing."""


@metadata
class _Fields(OfClassifier):
    root: ClassName
    nodes: tuple[tuple[ClassName, ...], ...]


@dataclass(frozen=True)
class LevelScores(LearnedCompanion):
    """A tree over the classes, and N held-out images at its L levels.

    Attributes:
        taxonomy: The tree.
        scores: Probability of the most probable node, float32 [N, L].
        correct: Whether the most probable node is the label's, bool [N, L].
    """

    file: ClassVar[str] = "taxonomy.safetensors"
    kind: ClassVar[str] = "scores at the levels of a taxonomy"
    remedy: ClassVar[str] = "remove it, and run the student's fit again"
    shapes: ClassVar = {"of_class": "int64 L C", "scores": "float32 n L", "correct": "bool n L"}
    fields = _Fields

    taxonomy: Taxonomy
    scores: Tensor
    correct: Tensor

    @classmethod
    def of(cls, taxonomy: Taxonomy, logits: Tensor, labels: Tensor) -> Self:
        """Take the scores from logits [N, C] and labels [N]."""
        scores, nodes = taxonomy.best(MULTI_CLASS.probabilities(logits.float()))
        return cls(taxonomy, scores, nodes == taxonomy.of_class[:, labels.cpu()].T)

    @classmethod
    def made_from(cls, outputs: StudentOutputs) -> Self | None:
        """Take the tree in the run's folder, if there is one, and the validation images.

        A fixed number of images of each class is not used, as it shows no error of images as they
        come.
        """
        file, names = outputs.folder / FILE, outputs.vectors.class_names
        if not file.is_file():
            return None
        taxonomy, images = Taxonomy.read(file, names), outputs.validation
        if images is not None and not images.sampled:
            return cls.of(taxonomy, images.logits, images.labels)
        return cls.of(taxonomy, torch.empty(0, len(names)), torch.empty(0, dtype=torch.long))

    def calibrated(
        self, features: Tensor, class_vectors: Tensor, logit_scale: float, labels: Tensor
    ) -> Self:
        """Take the scores of other held-out images."""
        return self.of(self.taxonomy, cosine_logits(features, class_vectors, logit_scale), labels)

    def thresholds(self, max_error: float, folder: Path | None = None) -> Thresholds:
        """Find a threshold for each level that keeps an error among the images answered there.

        An image is answered at the deepest level whose threshold its probability reaches. From the
        deepest level up, the threshold is ``HeldOutScores.threshold`` of the images that no deeper
        level answers; the strictest one accepts a quarter of them. Each of L levels keeps the error
        with the confidence 1 - 5 % / L, and so all levels together with 95 %. An ArtifactError
        without held-out images says how to make them for the classifier in ``folder``.
        """
        require_share("level_error", max_error)
        if not len(self.scores):
            raise ArtifactError(
                "this classifier has a tree, but no held-out images (a sample of val_shots of each "
                f"class does not count): {to_calibrate(folder)}"
            )
        confidence = 1 - (1 - CONFIDENCE) / self.scores.shape[1]
        thresholds = [math.inf] * self.scores.shape[1]
        for level in reversed(range(len(thresholds))):
            left = levels_answered(self.scores, thresholds) == 0
            scores = self.scores[left, level]
            of_level = HeldOutScores(1.0, scores, scores, self.correct[left, level])
            with suppress(ConfigError):
                thresholds[level] = of_level.threshold(max_error, confidence, _STRICTEST)
        if min(thresholds) == math.inf:
            raise ConfigError(
                f"at no level {len(self.scores)} held-out images show an error of "
                f"{100 * max_error:.3g}%: accept a larger error, or calibrate on more images"
            )
        return thresholds

    def contents(self) -> dict[str, Any]:
        """Return the tree and the scores."""
        return {**vars(self.taxonomy), "scores": self.scores, "correct": self.correct}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], fields: dict[str, Any]) -> Self:
        """Make it of tree and scores."""
        of_class = tensors.pop("of_class")
        largest = [len(nodes) - 1 for nodes in fields["nodes"]]
        if int(of_class.min()) < 0 or of_class.amax(dim=1).tolist() != largest:
            raise ValueError("its tree is invalid")
        return cls(Taxonomy(**fields, of_class=of_class), **tensors)


def levels_answered(scores: Tensor, thresholds: Thresholds) -> Tensor:
    """Return the deepest level with a threshold that scores [N, L] reach, int64 [N]; 0: none."""
    reached = scores >= torch.tensor(thresholds)
    return (reached * torch.arange(1, len(thresholds) + 1)).amax(dim=1)


@dataclass(frozen=True, kw_only=True)
class LevelRule(DecisionRule):
    """Names images by the most probable node of the deepest level with a reached threshold."""

    renames: ClassVar[bool] = True

    taxonomy: Taxonomy
    thresholds: Thresholds
    scores: tuple[str, ...] = (LEVEL,)

    def rename(self, predicted: list[Predicted], probabilities: Tensor) -> list[Predicted]:
        """Return the nodes of B images with probabilities [B, C] of the classes."""
        scores, nodes = self.taxonomy.best(probabilities)
        rows = (t.tolist() for t in (levels_answered(scores, self.thresholds), scores, nodes))
        named = []
        for image, level, score, node in zip(predicted, *rows, strict=True):
            top = Prediction(None, image.top[0].probability)
            if level:
                top = Prediction(self.taxonomy.nodes[level - 1][node[level - 1]], score[level - 1])
            named.append(image._replace(top=[top], scores={**image.scores, LEVEL: level}))
        return named


def level_rule(classifier: Classifier, max_error: float) -> LevelRule:
    """Make a rule for ``Classifier.predict`` that names the deepest node that keeps an error.

    An ArtifactError if the classifier has no tree, or no held-out images.
    """
    scores, classes = classifier.companions.get(NAME), len(classifier.class_names)
    if not isinstance(scores, LevelScores) or scores.taxonomy.of_class.shape[1] != classes:
        raise ArtifactError(
            "this classifier has no tree of its classes: train it with "
            "data.init_args.classes.taxonomy"
        )
    thresholds = scores.thresholds(max_error, classifier.folder)
    return LevelRule(taxonomy=scores.taxonomy, thresholds=thresholds)
