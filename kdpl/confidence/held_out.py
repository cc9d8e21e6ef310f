"""Scores of held-out images, and the thresholds and temperature that follow from them."""

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Self

import numpy as np
import numpy.typing as npt
import scipy
from pydantic import Field
from torch import Tensor

from kdpl.classifier import Classifier
from kdpl.classifier.companion import OfClassifier, read_of_classifier
from kdpl.confidence.student_outputs import LearnedCompanion, StudentOutputs
from kdpl.errors import ArtifactError, ConfigError
from kdpl.runtime.artifacts import metadata, write_tensors
from kdpl.runtime.predictions import spread
from kdpl.tasks import MULTI_CLASS

NAME = "held_out"
KIND = "scores of held-out images"
VERSION = 1

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
REMEDY = "run python -m kdpl calibrate with labelled images that it was not trained on"


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

    def threshold(
        self, max_error: float, confidence: float = CONFIDENCE, strictest: float = 0.5
    ) -> float:
        """Find the smallest threshold that keeps an error among accepted images.

        The threshold does so with a confidence of 95 % by default.

        Fixed-sequence testing (Angelopoulos et al., arXiv 2110.01052): thresholds are tested from
        the strictest one, which accepts the share ``strictest`` of the held-out images, or more if
        fewer cannot show such an error, down to the one that accepts all, until a Clopper-Pearson
        bound of the error exceeds ``max_error``. The tested numbers of accepted images do not
        depend on the labels. In at most 5 % (1 - ``confidence``) of all draws of held-out
        images the threshold has a larger error on new images, if these are exchangeable with the
        held-out ones, and if a stricter threshold never has a larger error.

        Raises:
            ConfigError: ``max_error`` is not between 0 and 1, no threshold reaches it, or there are
                too few images, or ``sampled`` ones.
        """
        # too few images show no such error, even without a mistake
        require_share("max_error", max_error)
        self._require_as_they_come()
        least = math.ceil(math.log(1 - confidence) / math.log1p(-max_error))
        if len(self) < least:
            raise ConfigError(
                f"it takes {least} held-out images or more to show an error of "
                f"{_percent(max_error)}, not {len(self)}: {_REMEDIES}"
            )
        # from the strictest threshold down, until the bound is too large
        first = max(least, math.ceil(len(self) * strictest))
        threshold = None
        for count in _counts(first, len(self), max_error, confidence):
            candidate, accepted, errors = self._accepting(count)
            if scipy.stats.binom.cdf(errors, accepted, max_error) > 1 - confidence:
                break
            threshold = candidate
        if threshold is None:
            raise ConfigError(
                "no threshold that accepts half of the held-out images shows an error of "
                f"{_percent(max_error)}: {_REMEDIES}"
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
        # ceil((n + 1) coverage); rounding must not turn 19 into 19.000000000000004
        rank = math.ceil((len(self) + 1) * coverage - 1e-9)
        if rank > len(self):
            least = math.ceil(coverage / (1 - coverage) - 1e-9)
            raise ConfigError(
                f"it takes {least} held-out images or more for sets of {_percent(coverage)}, not "
                f"{len(self)}: accept less coverage, or calibrate on more images"
            )
        return float(self.label_scores.sort(descending=True).values[rank - 1])

    def temperature_warning(self) -> str | None:
        """Return a warning if the temperature is of too few images, else None."""
        if len(self) >= CALIBRATED:
            return None
        return (
            f"the temperature is of {len(self)} held-out images and may make probabilities worse: "
            f"calibrate on {CALIBRATED} images or more"
        )

    def _require_as_they_come(self) -> None:
        if self.sampled:
            raise ConfigError(
                "the held-out images are a sample of so many of each class (val_shots), which does "
                f"not show the errors among images as they come: {REMEDY}"
            )

    def _accepting(self, count: int) -> tuple[float, int, int]:
        """Return a threshold, and the numbers of images that it accepts and of errors among them.

        It accepts ``count`` images, or more where scores are equal.
        """
        threshold = self.scores.sort(descending=True).values[count - 1]
        accepted = self.scores >= threshold
        return float(threshold), int(accepted.sum()), int((accepted & ~self.correct).sum())

    def save(self, folder: Path, classifier: str) -> None:
        """Write the file into a folder, atomically, with the fingerprint of the classifier."""
        tensors = dict(vars(self))
        fields = {"temperature": tensors.pop("temperature"), "classifier": classifier}
        if tensors.pop("sampled"):
            fields["sampled"] = True
        write_tensors(folder / self.file, KIND, VERSION, tensors, fields)

    @classmethod
    def read(cls, folder: Path, classifier: str, width: int = 0) -> Self:
        """Read the file of a folder; an ArtifactError if damaged or of another classifier."""
        path, remedy = folder / cls.file, f"remove it, or {REMEDY}"
        shapes = {"scores": "float32 N", "label_scores": "float32 N", "correct": "bool N"}
        tensors, settings = read_of_classifier(
            path, KIND, VERSION, _Fields, classifier, remedy, shapes
        )
        return cls(settings.temperature, **tensors, sampled=settings.sampled)

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


def held_out_of(classifier: Classifier) -> HeldOutScores:
    """Return a classifier's scores of held-out images; an ArtifactError if it has none."""
    scores = classifier.companions.get(NAME)
    if not isinstance(scores, HeldOutScores):
        raise ArtifactError(f"this classifier has no scores of held-out images: {REMEDY}")
    return scores


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def require_share(name: str, value: float) -> None:
    """Raise a ConfigError unless a value is between 0 and 1."""
    if not 0 < value < 1:
        raise ConfigError(
            f"{name} is {value}, expected a share between 0 and 1: give for example 0.05"
        )


def _counts(first: int, last: int, max_error: float, confidence: float) -> list[int]:
    """Return the numbers of accepted images to test.

    They are the first, every number that permits one more error, and the last.
    """
    counts = np.arange(first, last + 1)
    permitted = scipy.stats.binom.ppf(1 - confidence, counts, max_error)
    return sorted({*counts[np.diff(permitted, prepend=-1) > 0].tolist(), last})


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
