"""Scores of held-out images, and the thresholds and temperature that follow from them."""

import json
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import scipy
from pydantic import Field
from torch import Tensor

from kdpl.classifier import Classifier
from kdpl.confidence.student_outputs import LearnedCompanion, OfClassifier, StudentOutputs
from kdpl.data.sampling import spread
from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.advice import command
from kdpl.runtime.artifacts import metadata
from kdpl.tasks import MULTI_CLASS

NAME = "held_out"

TEMPERATURES = (0.05, 20.0)
"""Bounds of a fitted temperature."""
CALIBRATED = 100
"""Number of images that limit the calibration error of a temperature to about 5 points.

This holds in 95 % of draws of a simulation (docs/own_data.md); with 30 images it is 9 points.
"""
MAX_IMAGES = 5000
"""Largest number of held-out images to keep, evenly spread: 0.05 MB."""
_ERRORS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Wanted errors, and 1 - coverages, with thresholds in the metadata of exported files."""
CONFIDENCE = 0.95
"""Probability, over draws of the held-out images, that a threshold keeps a wanted error."""

_REMEDIES = "accept a larger error, or calibrate on more images"


@metadata
class _Fields(OfClassifier):
    temperature: Annotated[float, Field(ge=TEMPERATURES[0], le=TEMPERATURES[1])]
    sampled: bool = False


@dataclass(frozen=True)
class HeldOutScores(LearnedCompanion):
    """Scores of N held-out images, for thresholds of any wanted error or coverage.

    Thresholds are of probabilities at temperature 1, since the temperature is fitted on the same
    images.

    Attributes:
        temperature: The temperature with the largest likelihood of the labels.
        scores: Largest probability of each image, float32 [N].
        label_scores: Probability of each image's label, float32 [N].
        correct: Whether the most probable class is the label, bool [N].
        sampled: Whether a fixed number of images of each class was drawn. Thresholds for images as
            they come do not follow from such a sample.
    """

    file: ClassVar[str] = "held_out.safetensors"
    kind: ClassVar[str] = "scores of held-out images"
    remedy: ClassVar[str] = "remove it, or run python -m kdpl calibrate on other images"
    shapes: ClassVar = {"scores": "float32 N", "label_scores": "float32 N", "correct": "bool N"}
    fields = _Fields

    temperature: float
    scores: Tensor
    label_scores: Tensor
    correct: Tensor
    sampled: bool = False

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, sampled: bool = False) -> Self:
        """Take the scores from logits [N, C] and labels [N] of one or more images.

        No two images may be of the same group.
        """
        kept = spread(range(len(labels)), MAX_IMAGES)
        logits, labels = logits[kept].float().cpu(), labels[kept].cpu()
        probabilities = MULTI_CLASS.probabilities(logits)
        top = probabilities.max(dim=1)
        label_scores = probabilities.gather(1, labels[:, None]).squeeze(1)
        temperature = fit_temperature(logits.double().numpy(), labels.numpy())
        return cls(temperature, top.values, label_scores, top.indices == labels, sampled)

    @classmethod
    def made_from(cls, outputs: StudentOutputs) -> Self | None:
        """Take the scores of the validation images, if there are any."""
        held_out = outputs.validation
        if held_out is None or outputs.vectors.task != MULTI_CLASS.name:
            return None
        return cls.of(held_out.logits, held_out.labels, held_out.sampled)

    def __len__(self) -> int:
        return len(self.scores)

    def threshold(self, max_error: float) -> float:
        """Find the smallest threshold that keeps an error among accepted images.

        Fixed-sequence testing (Angelopoulos et al., arXiv 2110.01052): thresholds are tested from
        the strictest one, which accepts half of the held-out images, or more if fewer cannot show
        such an error, down to the one that accepts all, until a Clopper-Pearson bound of the error
        exceeds ``max_error``. The tested numbers of accepted images do not depend on the labels. In
        at most 5 % (1 - ``CONFIDENCE``) of all draws of held-out images the threshold has a larger
        error on new images, if these are exchangeable with the held-out ones, and if a stricter
        threshold never has a larger error.

        Raises:
            ConfigError: ``max_error`` is not between 0 and 1, no threshold reaches it, or there are
                too few images, or ``sampled`` ones.
        """
        # too few images show no such error, even without a mistake
        require_share("max_error", max_error)
        self._require_as_they_come()
        least = math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-max_error))
        if len(self) < least:
            raise ConfigError(
                f"it takes {least} held-out images or more to show an error of "
                f"{100 * max_error:.3g}%, not {len(self)}: {_REMEDIES}"
            )
        # numbers of images to accept: the first, each that permits one more error, and the last
        half = math.ceil(len(self) / 2)
        counts = np.arange(max(least, half), len(self) + 1)
        permitted = scipy.stats.binom.ppf(1 - CONFIDENCE, counts, max_error)
        tested = sorted({*counts[np.diff(permitted, prepend=-1) > 0].tolist(), len(self)})
        ranked, threshold = self.scores.sort(descending=True).values, None
        for count in tested:
            # more than count where scores are equal
            reached = self.scores >= ranked[count - 1]
            accepted, errors = int(reached.sum()), int((reached & ~self.correct).sum())
            if scipy.stats.binom.cdf(errors, accepted, max_error) > 1 - CONFIDENCE:
                break
            threshold = float(ranked[count - 1])
        if threshold is None:
            # the bound of the strictest threshold is achieved
            right = self.correct[self.scores >= ranked[half - 1]]
            correct, errors = int(right.sum()), int((~right).sum())
            shown = scipy.stats.beta.ppf(CONFIDENCE, errors + 1, correct) if correct else 1.0
            percent = math.ceil(1000 * shown) / 10
            # an error of 100% cannot be wanted
            instead = f", but {percent:g}%" if percent < 100 else ""
            raise ConfigError(
                "no threshold that accepts half of the held-out images shows an error of "
                f"{100 * max_error:.3g}%{instead}: {_REMEDIES}"
            )
        return threshold

    def set_threshold(self, coverage: float) -> float:
        """Return the smallest probability of a class in the set of an image.

        Split conformal prediction with the score 1 - p (Sadinle et al., arXiv 1609.00451): of
        exchangeable images, at least the share ``coverage`` have their label in their set, on
        average over draws of the held-out images.

        Raises:
            ConfigError: ``coverage`` is not between 0 and 1, or there are too few held-out images
                for it, or ``sampled`` ones.
        """
        require_share("sets", coverage)
        self._require_as_they_come()
        what = f"sets of {100 * coverage:.3g}%"
        rank = conformal_rank(len(self), coverage, what, "accept less coverage")
        return float(self.label_scores.sort(descending=True).values[rank - 1])

    def best_temperature(self) -> float:
        """Return the temperature; a ConfigError if it was not found, and is at its bound."""
        if self.temperature in TEMPERATURES:
            raise ConfigError(
                f"on {len(self)} held-out images no temperature is best: calibrate on more images"
            )
        return self.temperature

    def temperature_warning(self) -> str | None:
        """Return a warning if the temperature rests on too few images, else None."""
        if len(self) >= CALIBRATED:
            return None
        return (
            f"the temperature rests on {len(self)} held-out images and may make probabilities "
            f"worse: calibrate on {CALIBRATED} images or more"
        )

    def among(self, images: Tensor) -> Self:
        """Return the scores of images by their indices; a ConfigError for ``sampled`` ones."""
        self._require_as_they_come()
        return replace(self, **{name: getattr(self, name)[images] for name in self.shapes})

    def _require_as_they_come(self) -> None:
        if self.sampled:
            raise ConfigError(
                "the held-out images are a sample of equally many of each class (val_shots), which "
                "does not show the errors among images as they come: calibrate on such images"
            )

    def contents(self) -> dict[str, Any]:
        """Return the attributes, ``sampled`` only if true, as in files of earlier versions."""
        return {name: value for name, value in vars(self).items() if value is not False}

    def metadata(self, num_classes: int) -> dict[str, str]:
        """Return the temperature and the thresholds that the images suffice for."""
        thresholds, set_thresholds = {}, {}
        for share in _ERRORS:
            with suppress(ConfigError):
                thresholds[f"{share:g}"] = self.threshold(share)
            with suppress(ConfigError):
                set_thresholds[f"{1 - share:g}"] = self.set_threshold(1 - share)
        return {
            "temperature": json.dumps(self.temperature),
            "thresholds": json.dumps(thresholds),
            "set_thresholds": json.dumps(set_thresholds),
        }


def to_calibrate(folder: Path | None) -> str:
    """Return how a classifier gets scores of other images; it has no folder if it is not saved."""
    save, words = "" if folder else "save it, and ", command("calibrate", folder or "CLASSIFIER")
    return (
        f"{save}run {words} IMAGES with labelled images that it was not trained on, or train with "
        "validation images (init --val-share, and data.init_args.train_on_val false)"
    )


def held_out_of(classifier: Classifier) -> HeldOutScores:
    """Return a classifier's scores of held-out images; an ArtifactError if it has none."""
    scores = classifier.companions.get(NAME)
    if not isinstance(scores, HeldOutScores):
        raise ArtifactError(
            f"this classifier has no scores of held-out images: {to_calibrate(classifier.folder)}"
        )
    return scores


def conformal_rank(images: int, share: float, what: str, instead: str) -> int:
    """Return the rank, from 1, of the score in N that a share of further images does not exceed."""
    # rounding must not turn 19 into 19.000000000000004
    rank = math.ceil((images + 1) * share - 1e-9)
    if rank > images:
        least = math.ceil(share / (1 - share) - 1e-9)
        raise ConfigError(
            f"it takes {least} held-out images or more for {what}, not {images}: {instead}, or "
            "calibrate on more images"
        )
    return rank


def require_share(name: str, value: float) -> None:
    """Raise a ConfigError unless a value is between 0 and 1."""
    if not 0 < value < 1:
        raise ConfigError(
            f"{name} is {value}, expected a share between 0 and 1: give for example 0.05"
        )


def fit_temperature(logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """Find the temperature that maximises the likelihood of labels [N].

    The method is by Guo et al., arXiv 1706.04599, section 4.2. The logits [N, C] are of images that
    neither training nor the test used. Returns a bound of ``TEMPERATURES`` if there is no maximum
    between them.
    """
    # the mean negative log-likelihood is convex in β = 1/T, with the slope mean(E_p[z] - z_label)
    # for p = softmax(βz)
    shifted = logits - logits.max(axis=1, keepdims=True)
    labelled = shifted[np.arange(len(labels)), labels].mean()

    def slope(log_temperature: float) -> float:
        weights = np.exp(shifted / np.exp(log_temperature))
        expected = (weights * shifted).sum(axis=1) / weights.sum(axis=1)
        return float(expected.mean() - labelled)

    low, high = (float(np.log(t)) for t in TEMPERATURES)
    # the slope falls as the temperature rises
    if slope(low) <= 0:
        return TEMPERATURES[0]
    if slope(high) >= 0:
        return TEMPERATURES[1]
    return float(np.exp(scipy.optimize.brentq(slope, low, high, xtol=1e-12)))
