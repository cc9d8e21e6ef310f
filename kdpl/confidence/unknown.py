"""Score of an image being of none of the classes.

It rests on how unusual the image's features are, and on how close they are to other words.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import pydantic.dataclasses
import torch
from pydantic import Field
from torch import Tensor, nn

from kdpl.classifier import Classifier, PredictOptions
from kdpl.confidence.beside import OfClassifier, read_of_classifier
from kdpl.confidence.evidence import Evidence, LearnedCompanion
from kdpl.confidence.words import distant_words
from kdpl.data.augmentation import GivenImage
from kdpl.errors import ArtifactError
from kdpl.runtime.artifacts import STRICT, write_tensors
from kdpl.runtime.class_names import ClassName
from kdpl.tasks import MULTI_CLASS

NAME = "unknown"
KIND = "scores of being none of the classes"
VERSION = 1

MIN_IMAGES = 20
"""Smallest number of unlabelled images whose features say what is usual."""
USUAL = 0.95
"""Share of images like the validation images that score at most 0.5, if there are enough.

``MIN_HELD_OUT`` validation images are enough.
"""
MIN_HELD_OUT = math.ceil(USUAL / (1 - USUAL) - 1e-9)
"""Smallest number of validation images for that.

Of V, the largest score is exceeded by 1 in V + 1 further images.
"""
REMEDY = f"distil a student again by this kdpl, on at least {MIN_IMAGES} unlabelled images"

_RIDGE = 0.01  # of the mean variance, added to all
# of their part, both in standard deviations; chosen on validation images of other students
_WORDS_WEIGHT = 0.3

_TENSORS = ("center", "whitening", "means", "negatives")
_SETTINGS = ("words", "distance", "share", "cutoff", "held_out")

Standard = tuple[float, Annotated[float, Field(gt=0)]]
"""Mean and standard deviation."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class _Fields(OfClassifier):
    words: tuple[ClassName, ...]
    distance: Standard
    share: Standard
    cutoff: float
    held_out: Annotated[int, Field(gt=0)] | None = None


def usual_rank(images: int) -> int:
    """Return the place, from 1 on, of a score in the ordered scores of N images.

    At most 5 % of further images exceed that score.
    """
    return min(math.ceil((images + 1) * USUAL - 1e-9), images)


def share_above(images: int) -> float:
    """Share of further images that exceed the score of ``usual_rank`` in N images, on average."""
    return (images + 1 - usual_rank(images)) / (images + 1)


def fault_of_limit(held_out: int | None) -> str | None:
    """Say what holds of the limit of 0.5 if too few validation images made it; None for enough."""
    if held_out is not None and held_out >= MIN_HELD_OUT:
        return None
    if held_out is None:
        images, most = "no validation images", "more than 5%"
    else:
        images = "1 validation image" if held_out == 1 else f"{held_out} validation images"
        most = f"on average up to {100 * share_above(held_out):.2g}%"
    return (
        f"the limit of 0.5 is of {images}, so that {most} of new images of the classes may be "
        f"above it: it takes {MIN_HELD_OUT} validation images or more for 5%"
    )


class Unknown(nn.Module, LearnedCompanion):
    """Scores images as being of none of the classes, by features alone.

    The first part is the squared Mahalanobis distance d² to the nearest of K means, those of the
    unlabelled images of each predicted class, with one covariance for all (Lee et al., arXiv
    1807.03888, section 2.1). The second, with M negative vectors, the teacher's text features of
    things that are no class, is the share p of the softmax probability over both that stays with
    the classes (NegLabel, arXiv 2403.20078, section 3.3). The score is σ(z(log d²) - 0.3 z(log p/(1
    - p)) - cutoff). z takes off the mean and divides by the standard deviation of the unlabelled
    images; the cutoff is such that of images like the V validation images at most 5 % have a score
    above 0.5, on average over their draws, and 1 in V + 1 where V is below ``MIN_HELD_OUT``.

    Attributes:
        words: Those of the negative vectors.
        held_out: Number of the validation images that the cutoff is of; None without any, or in a
            file without it.
    """

    file: ClassVar[str] = "unknown.safetensors"

    center: Tensor
    whitening: Tensor
    means: Tensor
    negatives: Tensor

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        words: tuple[str, ...],
        distance: Standard = (0.0, 1.0),
        share: Standard = (0.0, 1.0),
        cutoff: float = 0.0,
        held_out: int | None = None,
    ) -> None:
        super().__init__()
        for name in _TENSORS:
            self.register_buffer(name, tensors[name].float().contiguous(), persistent=False)
        self.words, self.distance, self.share, self.cutoff = words, distance, share, cutoff
        self.held_out = held_out

    @classmethod
    def made_from(cls, evidence: Evidence) -> Self | None:
        """Learn what is usual from the sample of the pool; None where that has too few images."""
        if len(evidence.kept) < MIN_IMAGES or evidence.vectors.task != MULTI_CLASS.name:
            return None
        features = torch.stack([each.embedding for each in evidence.kept])
        known = None if evidence.held_out is None else evidence.held_out.features.cpu()
        others = distant_words(evidence.folder, evidence.vectors)
        negatives, words = (None, ()) if others is None else (others.vectors, others.class_names)
        return cls.fit(
            features, evidence.vectors.vectors, evidence.logit_scale, known, negatives, words
        )

    @classmethod
    def fit(
        cls,
        features: Tensor,
        class_vectors: Tensor,
        logit_scale: float,
        held_out: Tensor | None = None,
        negatives: Tensor | None = None,
        words: Sequence[str] = (),
    ) -> Self:
        """Learn what is usual from unlabelled images.

        Args:
            features: Of at least ``MIN_IMAGES`` unlabelled images, normalised [N, D].
            class_vectors: Normalised [C, D].
            logit_scale: Factor on cosines, the classifier's.
            held_out: Features of images that were not trained on, [V, D], which make the cutoff;
                None: the unlabelled ones, which the encoder knows, so that more than 5 % of new
                images will be above it.
            negatives: Text features of things that are no class, normalised [M, D].
            words: Their words.
        """
        precise = features.double()
        nearest = MULTI_CLASS.labels(precise @ class_vectors.double().T)
        predicted, members = torch.unique(nearest, return_inverse=True)
        means = torch.stack([precise[members == i].mean(dim=0) for i in range(len(predicted))])
        centered = precise - means[members]
        covariance = centered.T @ centered / len(precise)
        floor = _RIDGE * covariance.diagonal().mean() + 1e-8
        ridge = floor * torch.eye(len(covariance)).to(covariance)
        lower = torch.linalg.cholesky(covariance + ridge)
        whitening, center = torch.linalg.inv(lower).T, precise.mean(dim=0)
        tensors = {
            "center": center,
            "whitening": whitening,
            "means": (means - center) @ whitening,
            "negatives": precise[:0] if negatives is None else negatives,
        }
        made = cls(tensors, tuple(words))
        # an image that is alone in its class is its own mean, which says nothing of distances
        several = torch.bincount(members)[members] > 1
        usual = features[several] if several.sum() > 1 else features
        distance, share = made.parts(usual, class_vectors, logit_scale)
        made.distance = _standard(distance)
        made.share = (0.0, 1.0) if share is None else _standard(share)
        limiting = usual if held_out is None else held_out
        known = made.unusualness(limiting, class_vectors, logit_scale)
        # a conformal quantile: of exchangeable images at most share_above(V) are above it, on
        # average
        made.cutoff = float(known.sort().values[usual_rank(len(known)) - 1])
        made.held_out = None if held_out is None else len(held_out)
        return made

    def parts(
        self, features: Tensor, class_vectors: Tensor, logit_scale: float
    ) -> tuple[Tensor, Tensor | None]:
        """Return log d² and log p/(1 - p) of features [B, D], [B] each.

        The second is None without words.
        """
        centered = features - self.center
        # |x - m|² in three terms, so that nothing is of size [B, K, D]
        lengths = (centered @ self.whitening).square().sum(dim=1, keepdim=True)
        products = centered @ (self.whitening @ self.means.T)
        squares = (lengths - 2 * products + self.means.square().sum(dim=1)).amin(dim=1)
        distance = squares.clamp(min=1e-6).log()
        if not self.words:
            return distance, None
        of_classes, of_others = (
            (logit_scale * (features @ vectors.T)).logsumexp(dim=1)
            for vectors in (class_vectors, self.negatives)
        )
        return distance, of_classes - of_others

    def unusualness(self, features: Tensor, class_vectors: Tensor, logit_scale: float) -> Tensor:
        """Return z(log d²) - 0.3 z(log p/(1 - p)) of features [B, D], [B]."""
        distance, share = self.parts(features, class_vectors, logit_scale)
        unusual = (distance - self.distance[0]) / self.distance[1]
        if share is None:
            return unusual
        return unusual - _WORDS_WEIGHT * (share - self.share[0]) / self.share[1]

    def forward(self, features: Tensor, class_vectors: Tensor, logit_scale: float) -> Tensor:
        """Return the score of images with these features, normalised float32 [B, D].

        The score, [B], is high for none of the classes.

        Class vectors [C, D] and the factor on cosines are the classifier's.
        """
        return torch.sigmoid(self.unusualness(features, class_vectors, logit_scale) - self.cutoff)

    def further_scores(
        self, features: Tensor, class_vectors: Tensor, logit_scale: float
    ) -> dict[str, Tensor]:
        """Return the score by its name."""
        scores: Tensor = self(features, class_vectors, logit_scale)
        return {NAME: scores}

    def save(self, folder: Path, classifier: str) -> None:
        """Write the file into a folder, atomically, with the fingerprint of the classifier."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        fields = {name: getattr(self, name) for name in _SETTINGS} | {"classifier": classifier}
        write_tensors(folder / self.file, KIND, VERSION, tensors, fields)

    @classmethod
    def read(cls, folder: Path, classifier: str, width: int) -> Self:
        """Read the file of a folder.

        Raises an ArtifactError if it is damaged, or of another classifier or width D.
        """
        path, remedy = folder / cls.file, f"remove it, or {REMEDY}"
        tensors, settings = read_of_classifier(path, KIND, VERSION, _Fields, classifier, remedy)
        classes = max(1, tensors.get("means", torch.empty(0)).numel() // width)
        rows = [(), (width,), (classes,), (len(settings.words),)]
        shapes = {name: (*own, width) for name, own in zip(_TENSORS, rows, strict=True)}
        valid = {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
        if not valid or not all(
            each.dtype == torch.float32 and each.isfinite().all() for each in tensors.values()
        ):
            raise ArtifactError(f"{path} is damaged (its numbers are invalid): {remedy}")
        return cls(tensors, **{name: getattr(settings, name) for name in _SETTINGS})


def unknown_of(classifier: Classifier) -> Unknown:
    """Return what scores images as being none of the classes.

    Raises an ArtifactError for a classifier without it.
    """
    unknown = classifier.companions.get(NAME)
    if not isinstance(unknown, Unknown):
        raise ArtifactError(f"this classifier has no scores of being none of the classes: {REMEDY}")
    return unknown


def none_of_these(classifier: Classifier, images: Iterable[GivenImage], **options: Any) -> Tensor:
    """Return the scores of N images of being of none of the classes, [N].

    Options and errors are those of ``predict``.

    Above 0.5 an image is more unusual than 95 % of images like the run's validation images, if
    there were 19 or more of these, see ``fault_of_limit``.
    """
    unknown_of(classifier)
    own = PredictOptions(**options)
    return torch.tensor([each.scores[NAME] for each in classifier.predicted(images, own)])


def _standard(values: Tensor) -> Standard:
    return float(values.mean()), max(float(values.std()), 1e-3)
