"""Score of being none of the classes, from unusual features and similarity to other words."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor

from kdpl.classifier import Classifier, PredictOptions
from kdpl.clip.modules import Float32Module
from kdpl.confidence.held_out import MAX_IMAGES, conformal_rank
from kdpl.confidence.student_outputs import LearnedCompanion, OfClassifier, StudentOutputs
from kdpl.confidence.words import distant_words
from kdpl.data.augmentation import GivenImage
from kdpl.data.sampling import spread
from kdpl.errors import ArtifactError
from kdpl.runtime.artifacts import metadata
from kdpl.runtime.class_names import ClassName
from kdpl.tasks import MULTI_CLASS

NAME = "unknown"

MIN_IMAGES = 20
"""Smallest number of unlabelled images that show which features are usual."""
USUAL = 0.95
"""Share of images like ``MIN_HELD_OUT`` or more held-out images that score at most 0.5."""
MIN_HELD_OUT = math.ceil(USUAL / (1 - USUAL) - 1e-9)
"""Smallest such number: 1 in V + 1 further images exceeds the largest score of V images."""
REMEDY = f"distil a student again by this kdpl, on at least {MIN_IMAGES} unlabelled images"

_RIDGE = 0.01  # share of the mean variance, added to all variances
# weight of the words, in standard deviations; chosen on validation images of other students
_WORDS_WEIGHT = 0.3

Standard = tuple[float, Annotated[float, Field(gt=0)]]
"""Mean and standard deviation."""


@metadata
class _Fields(OfClassifier):
    words: tuple[ClassName, ...]
    distance: Standard
    share: Standard
    cutoff: float
    held_out: Annotated[int, Field(gt=0)] | None = None
    unusual: tuple[float, ...] = ()


def usual_rank(images: int) -> int:
    """Return the rank, from 1, of the score in N that at most 5 % of further images exceed."""
    return min(math.ceil((images + 1) * USUAL - 1e-9), images)


def usual_score(scores: Tensor) -> float:
    """Return the score of ``usual_rank`` in scores [N]."""
    return float(scores.sort().values[usual_rank(len(scores)) - 1])


def share_above(images: int) -> float:
    """Return the mean share of further images above the score of ``usual_rank`` in N images."""
    return (images + 1 - usual_rank(images)) / (images + 1)


def limit_warning(held_out: int | None) -> str | None:
    """Return a warning if the limit of 0.5 rests on too few held-out images, else None."""
    if (held_out or 0) >= MIN_HELD_OUT:
        return None
    images = f"{held_out or 'no'} held-out image{'s' * (held_out != 1)}"
    most = f"on average up to {100 * share_above(held_out):.2g}%" if held_out else "more than 5%"
    return (
        f"the limit of 0.5 rests on {images}, so that {most} of new images of the classes may be "
        f"above it: calibrate on {MIN_HELD_OUT} images or more for 5%"
    )


class Unknown(Float32Module, LearnedCompanion):
    """Scores images as being of none of the classes, by features alone.

    The first part is the squared Mahalanobis distance d² to the nearest of K means, one for the
    unlabelled images of each predicted class, with one covariance for all (Lee et al., arXiv
    1807.03888, section 2.1). The second part needs M negative vectors, the teacher's text features
    of things that are not a class: it is the classes' share p of the softmax probability over
    classes and negative vectors (NegLabel, arXiv 2403.20078, section 3.3). The score is

        σ(z(log d²) - 0.3 z(log p/(1 - p)) - cutoff),

    where z standardises by the unlabelled images. The cutoff lets at most 5 % of images like the V
    held-out images score above 0.5, on average over their draws, or 1 in V + 1 if V is below
    ``MIN_HELD_OUT``.

    Attributes:
        words: Words of the negative vectors.
        held_out: Number of held-out images of the cutoff; None without any, or in a file
            without the number.
        unusual: ``unusualness`` of the images of ``HeldOutScores``, in their order; empty without
            any, or in a file of an earlier version.
    """

    file: ClassVar[str] = "unknown.safetensors"
    kind: ClassVar[str] = "scores of being none of the classes"
    remedy: ClassVar[str] = f"remove it, or {REMEDY}"
    shapes: ClassVar = {
        "center": "float32 D",
        "whitening": "float32 D D",
        "means": "float32 K D",
        "negatives": "float32 m D",
    }
    fields = _Fields

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
        unusual: Sequence[float] = (),
    ) -> None:
        super().__init__()
        for name in self.shapes:
            self.register_buffer(name, tensors[name].float().contiguous(), persistent=False)
        self.words, self.distance, self.share, self.cutoff = words, distance, share, cutoff
        self.held_out, self.unusual = held_out, unusual

    @classmethod
    def made_from(cls, outputs: StudentOutputs) -> Self | None:
        """Learn what is usual from the sample of the pool; None if it has too few images."""
        if len(outputs.pool) < MIN_IMAGES or outputs.vectors.task != MULTI_CLASS.name:
            return None
        features = torch.stack([predicted.embedding for predicted in outputs.pool])
        vectors, scale, images = outputs.vectors.vectors, outputs.logit_scale, outputs.validation
        unknown = cls.fit(features, vectors, scale, *distant_words(outputs.folder, outputs.vectors))
        if images is None:
            return unknown
        return unknown.calibrated(images.features, vectors, scale, images.labels)

    @classmethod
    def fit(
        cls,
        features: Tensor,
        class_vectors: Tensor,
        logit_scale: float,
        negatives: Tensor | None = None,
        words: Sequence[str] = (),
    ) -> Self:
        """Learn what is usual from unlabelled images.

        The encoder has learned them, so that more than 5 % of new images are above their cutoff.

        Args:
            features: Normalised features [N, D] of at least ``MIN_IMAGES`` unlabelled images.
            class_vectors: Normalised class vectors [C, D].
            logit_scale: The classifier's factor on cosines.
            negatives: Text features of things that are not a class, normalised [M, D].
            words: Words of the negative vectors.
        """
        precise = features.double()
        nearest = MULTI_CLASS.labels(precise @ class_vectors.double().T)
        predicted, members = torch.unique(nearest, return_inverse=True)
        means = torch.stack([precise[members == i].mean(dim=0) for i in range(len(predicted))])
        centered = precise - means[members]
        covariance = centered.T @ centered / len(precise)
        covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean() + 1e-8)
        lower = torch.linalg.cholesky(covariance)
        whitening, center = torch.linalg.inv(lower).T, precise.mean(dim=0)
        tensors = {
            "center": center,
            "whitening": whitening,
            "means": (means - center) @ whitening,
            "negatives": precise[:0] if negatives is None else negatives,
        }
        unknown = cls(tensors, tuple(words))

        # standardise both parts; an image alone in its class is its mean, at distance 0
        several = torch.bincount(members)[members] > 1
        usual = features[several] if several.sum() > 1 else features
        distance, share = unknown.parts(usual, class_vectors, logit_scale)
        unknown.distance = _standard(distance)
        if words:
            unknown.share = _standard(share)

        unknown.cutoff = usual_score(unknown.unusualness(usual, class_vectors, logit_scale))
        return unknown

    def calibrated(
        self, features: Tensor, class_vectors: Tensor, logit_scale: float, labels: Tensor
    ) -> Self:
        """Take the cutoff of held-out images."""
        kept = features[spread(range(len(features)), MAX_IMAGES)]
        unusual = self.unusualness(kept, class_vectors, logit_scale)
        # a conformal quantile: on average at most share_above(V) of exchangeable images exceed it
        self.cutoff, self.held_out = usual_score(unusual), len(kept)
        self.unusual = unusual.tolist()
        return self

    def limit(self, share: float) -> tuple[float, Tensor]:
        """Return the score that at most a share of images like the held-out ones exceed.

        Also returns the indices of the held-out images below it, which are exchangeable with new
        images below it. A ConfigError if there are too few.
        """
        what = f"rejecting {100 * share:.3g}% of such images"
        rank = conformal_rank(len(self.unusual), 1 - share, what, "reject more")
        ranked = torch.tensor(self.unusual).sort()
        limit = torch.sigmoid(ranked.values[rank - 1] - self.cutoff)
        return float(limit), ranked.indices[: rank - 1]

    def parts(
        self, features: Tensor, class_vectors: Tensor, logit_scale: float
    ) -> tuple[Tensor, Tensor]:
        """Return log d² and log p/(1 - p) of features [B, D], [B] each; 0 without words."""
        centered = features - self.center
        # |x - m|² in three terms, to avoid a tensor [B, K, D]
        lengths = (centered @ self.whitening).square().sum(dim=1, keepdim=True)
        products = centered @ (self.whitening @ self.means.T)
        squares = (lengths - 2 * products + self.means.square().sum(dim=1)).amin(dim=1)
        distance = squares.clamp(min=1e-6).log()
        if not self.words:
            return distance, torch.zeros_like(distance)
        of_classes, of_negatives = (
            (logit_scale * (features @ vectors.T)).logsumexp(dim=1)
            for vectors in (class_vectors, self.negatives)
        )
        return distance, of_classes - of_negatives

    def unusualness(self, features: Tensor, class_vectors: Tensor, logit_scale: float) -> Tensor:
        """Return z(log d²) - 0.3 z(log p/(1 - p)) of features [B, D], [B]."""
        distance, share = self.parts(features, class_vectors, logit_scale)
        unusual = (distance - self.distance[0]) / self.distance[1]
        return unusual - _WORDS_WEIGHT * (share - self.share[0]) / self.share[1]

    def further_scores(
        self, features: Tensor, class_vectors: Tensor, logit_scale: float
    ) -> dict[str, Tensor]:
        """Return the score [B], high for none of the classes, of normalised features [B, D]."""
        unusual = self.unusualness(features, class_vectors, logit_scale)
        return {NAME: torch.sigmoid(unusual - self.cutoff)}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], fields: dict[str, Any]) -> Self:
        """Make it of tensors and settings."""
        if len(tensors["negatives"]) != len(fields["words"]):
            raise ValueError("its tensors are invalid")
        return cls(tensors, **fields)


def unknown_of(classifier: Classifier) -> Unknown:
    """Return a classifier's scorer of none of the classes; an ArtifactError if it has none."""
    unknown = classifier.companions.get(NAME)
    if not isinstance(unknown, Unknown):
        raise ArtifactError(f"this classifier has no scores of being none of the classes: {REMEDY}")
    return unknown


def none_of_these(classifier: Classifier, images: Iterable[GivenImage], **options: Any) -> Tensor:
    """Return the scores [N] of images of being none of the classes.

    Options and errors are the same as for ``predict``. Above 0.5 an image is more unusual than 95 %
    of images like the run's validation images, if these were 19 or more, see ``limit_warning``.
    """
    unknown_of(classifier)
    predictions = classifier.predicted(images, PredictOptions(**options))
    return torch.tensor([predicted.scores[NAME] for predicted in predictions])


def _standard(values: Tensor) -> Standard:
    return float(values.mean()), max(float(values.std()), 1e-3)
