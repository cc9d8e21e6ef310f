"""Targets for several labels per image from the teacher's predictions for crops of each image.

A CLIP's feature of a whole image mostly describes the largest object, and a small crop often shows
a single one. After the ideas of CCD (arXiv 2503.16873) and SPARC (arXiv 2502.16911). All constants
were tuned on training pages (docs/several_labels.md).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor
from torch.utils.data import BatchSampler

from kdpl.class_vectors import ClassVectors
from kdpl.confidence.words import NEGATIVE_VECTORS_FILE
from kdpl.data.batches import Batch
from kdpl.data.datasets import OpenImage
from kdpl.data.inference import read_in_workers
from kdpl.data.names import Indices, Names
from kdpl.data.probe import Probe, logistic_regression
from kdpl.data.sampling import spread
from kdpl.errors import ConfigError
from kdpl.multilabel.crops import Crops
from kdpl.multilabel.task import MultiLabel
from kdpl.runtime.artifacts import read_tensors, write_tensors
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import Origin, digest
from kdpl.targets import PreparedTarget, TargetValues
from kdpl.targets.inputs import TargetInputs
from kdpl.tasks import MULTI_CLASS

LOCAL_VIEWS_FILE = "local_views.safetensors"
"""The targets of all unlabelled images, in a run's folder."""

Scales = tuple[float, ...]

SCALES: tuple[Scales, ...] = ((1, 1.2), (1, 1.5, 2), (1, 2, 2.5), (1, 2.5, 3, 3.5, 4, 4.5))
"""Scales that ``auto`` chooses from, for large to small objects."""

LIMIT = math.log(0.99 / 0.01)
"""Largest log odds of a target: none is certain."""

# slope of the probability over standardised scores, and the score at one half
_SHARPNESS, _MARGIN = 2.0, 0.5

_KIND = "targets from local views"
_VERSION = 3

# most labelled images to fit the probe to; their crops' features are in memory together
_MOST_LABELED = 2000

# unlabelled images whose crops choose the scales, and the factor by which others than the default
# must be better
_TO_CHOOSE_ON, _CLEARLY = 64, 4 / 3

# weight of the texts relative to a probe; its inverse regularisation times the features' width
_TEXT = 0.25
_STRENGTH = 30.0


class LogOdds(NamedTuple):
    """Indices of unlabelled images [N], log odds of their classes [N, C], and how they were made.

    Attributes:
        scales: The scales of the crops.
        made_from: The origin, see ``kdpl.targets.inputs.TargetInputs``.
    """

    images: Tensor
    log_odds: Tensor
    scales: Scales
    made_from: Origin

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        tensors = {"images": self.images, "log_odds": self.log_odds}
        fields = {"made_from": self.made_from, "scales": self.scales}
        write_tensors(path, _KIND, _VERSION, tensors, fields)


@dataclass(eq=False)
class LocalViews(PreparedTarget[tuple[Tensor, Tensor, Scales]]):
    """Log odds of the classes of an image, from the teacher's predictions for crops of it.

    With labels, a probe on the features of crops is multiplied with the predictions, and the
    targets of labelled images are their labels.

    The teacher predicts for each crop one of the classes or, if its folder has negative vectors, a
    word for something else. The score of a class, s = Σ_v p_v², counts a confident crop more than
    many uncertain ones. Its logarithm is standardised by class over the pool, since a CLIP prefers
    some names in any image. The image has the class with probability σ(2z − 1), clipped to
    [0.01, 0.99].

    The targets are computed before the first step and written to ``local_views.safetensors`` in the
    run's folder; a resumed run reads that file.

    Attributes:
        scales: The shorter edge of an image over the edges of boxes; 1 is the whole image. With
            ``auto``, ``choose_scales`` chooses from ``SCALES``, and the file of the targets names
            the choice.
        count: Number of boxes in an image; should exceed the number of its objects.
    """

    file = LOCAL_VIEWS_FILE
    scales: Scales | Literal["auto"] = SCALES[-1]
    count: PositiveInt = 8
    # all targets are computed before the first step
    uses_teacher = False

    def __post_init__(self) -> None:
        scales = self.scales
        if scales != "auto" and (min(scales, default=0) < 1 or max(scales) == 1):
            raise ConfigError(
                f"scales of local views are {list(scales)}, expected auto, or numbers of at least "
                "1, and one above: set [1, 2.5, 3, 3.5, 4, 4.5]"
            )

    @classmethod
    def require_task(cls, task: str) -> None:
        """Raise a ConfigError for images of one class each."""
        if task != MultiLabel.name:
            raise ConfigError(
                "the target local_views is for images of several labels, and these have one each: "
                "set classes.label_separator, or another target"
            )

    def settings(self, inputs: TargetInputs) -> Mapping[str, Any]:
        """Return the settings, and the words for other things."""
        words = digest([_negative_vectors(inputs).cpu().numpy().tobytes()])
        return {"target": asdict(self), "negative vectors": words}

    def gather(self, inputs: TargetInputs) -> tuple[Tensor, Tensor, Scales]:
        """Compute the targets from crops of all images; return images, log odds and scales."""
        log_odds, scales = self._make(inputs, _negative_vectors(inputs))
        return torch.from_numpy(np.asarray(inputs.pool.targeted)).long(), log_odds, scales

    def compute(self, gathered: tuple[Tensor, Tensor, Scales], made_from: Origin) -> LogOdds:
        """Return the log odds, which all processes have computed together."""
        return LogOdds(*gathered, made_from)

    def load(self, path: Path) -> tuple[TargetValues, Origin | None]:
        """Read the log odds and their origin."""
        remedy = "remove it, and run the same command again"
        tensors, fields = read_tensors(path, _KIND, _VERSION, remedy)
        return TargetValues(tensors["images"], tensors["log_odds"]), fields.get("made_from")

    def _make(self, inputs: TargetInputs, negatives: Tensor) -> tuple[Tensor, Scales]:
        vectors, targeted = inputs.vectors, inputs.pool.targeted
        texts = vectors.logit_scale * torch.cat([vectors.vectors, negatives]).to(inputs.device)
        views = Views(texts, len(vectors.vectors))

        # boxes of the size of the objects, chosen without the whole image, scale 1
        crops_of = partial(Crops, count=self.count, resizing=vectors.preprocessing.resizing)
        scales = self.scales
        if scales == "auto":
            sample = [inputs.pool.images[i] for i in spread(targeted.tolist(), _TO_CHOOSE_ON)]
            scales = choose_scales(
                lambda tried: summaries_of(inputs, crops_of(tried[1:]), views.certainty, sample)
            )
        crops = crops_of(scales)

        has = _multi_hot(inputs)
        chosen = spread(range(len(has)), _MOST_LABELED)
        images = f"{len(targeted)} images, with {len(negatives)} words for other things"
        inform(f"looking at crops of {images} and {len(chosen)} of {len(has)} labelled images")
        # two classes occur, and some image lacks one
        if int(has[chosen].any(dim=0).sum()) >= 2 and not bool(has[chosen].all()):
            sources = [inputs.labeled[row].source for row in chosen]
            views = views.tuned(summaries_of(inputs, crops, views.best, sources), has[chosen])
        elif inputs.labeled:
            inform(
                "the labelled images are too alike to learn from their crops, expected two classes "
                "and an image without one of them: only the texts decide"
            )
        log_odds = log_odds_of(summaries_of(inputs, crops, views.scores)).cpu()

        # labels replace the log odds of labelled images
        labels_of_source = dict(zip((r.source for r in inputs.labeled), has, strict=True))
        for row, image in enumerate(targeted.tolist() if labels_of_source else []):
            if (labels := labels_of_source.get(inputs.pool.images[image])) is not None:
                log_odds[row, : len(labels)] = torch.where(labels, LIMIT, -LIMIT)
        return log_odds, scales


@dataclass(frozen=True)
class Views:
    """Classifier of an image's crops by the teacher's texts and, with labels, a probe.

    Attributes:
        texts: Vectors of the classes and then of other things, times the teacher's scale, [M, D].
        classes: Number C of classes.
        probe: The probe of the classes and "none of them", C + 1; None without labels.
    """

    texts: Tensor
    classes: int
    probe: Probe | None = None

    def probabilities(self, features: Tensor) -> Tensor:
        """Return the probability of each class in each crop, float [V, C].

        With a probe, p ∝ text^¼ · probe over the classes and "none of them".
        """
        logits = features @ self.texts.T
        if self.probe is None:
            return MULTI_CLASS.probabilities(logits)[:, : self.classes]
        # "none of them": the words for other things, else the mean of the classes
        of_classes, of_words = logits[:, : self.classes], logits[:, self.classes :]
        nothing = of_words if of_words.shape[1] else of_classes.mean(dim=1, keepdim=True)
        text = torch.cat([of_classes, nothing.logsumexp(dim=1, keepdim=True)], dim=1)
        text = _TEXT * MULTI_CLASS.log_probabilities(text)
        both = text + self.probe.log_probabilities(features)
        return MULTI_CLASS.probabilities(both)[:, : self.classes]

    def scores(self, features: Tensor) -> Tensor:
        """Return the score of each class for the crops [V, D] of an image, float [C]."""
        return self.probabilities(features).square().sum(dim=0)

    def certainty(self, features: Tensor) -> Tensor:
        """Return the mean probabilities of the texts and the mean entropy over crops [M + 1]."""
        probabilities = MULTI_CLASS.probabilities(features @ self.texts.T)
        entropy = torch.special.entr(probabilities).sum(dim=1, keepdim=True)
        return torch.cat([probabilities, entropy], dim=1).mean(dim=0)

    def best(self, features: Tensor) -> Tensor:
        """Return the features of the most probable crop of each class, float [C · D]."""
        return features[MULTI_CLASS.labels(self.probabilities(features).T)].flatten()

    def tuned(self, best: Tensor, has: Tensor) -> "Views":
        """Return a copy with a probe that classifies crops as one of the classes or none.

        The probe is a logistic regression on the most probable crop of each class in each labelled
        image: an example of the class if the image has it, and else of none.

        Args:
            best: Features of the crops, float [n, C · D].
            has: Labels of the images for the first K classes, bool [n, K]; at least two classes
                occur, and some image lacks one.
        """
        # fit to the standardised features of crops
        labeled = has.shape[1]
        crops = best.view(len(best), self.classes, -1)[:, :labeled]
        rows = crops.flatten(0, 1).cpu().double()
        shown = torch.where(has, torch.arange(labeled), self.classes).flatten()
        mean, spread = rows.mean(dim=0), rows.std(dim=0) + 1e-6
        probe = logistic_regression((rows - mean) / spread, shown, _STRENGTH / rows.shape[1])

        # weights for unscaled features; classes without images get the mean of the intercepts
        weight = rows.new_zeros(rows.shape[1], self.classes + 1)
        bias = rows.new_full((self.classes + 1,), probe.bias.mean().item())
        weight[:, probe.classes] = probe.weight
        bias[probe.classes] = probe.bias
        weight /= spread[:, None]
        bias -= mean @ weight
        tensors = (weight.to(self.texts), bias.to(self.texts), torch.arange(self.classes + 1))
        return replace(self, probe=Probe(*tensors))


def choose_scales(certainty_of: Callable[[Scales], Tensor]) -> Scales:
    """Choose the scales of boxes that fit the objects, without labels, and say so.

    The teacher is sure of a crop that shows one object, and predicts something else for a crop of
    another. So the information of scales is that of a crop about its prediction: the entropy of the
    mean prediction over all crops minus the mean entropy. The last of ``SCALES``, the default,
    are chosen unless others have ``_CLEARLY`` times their information.

    Args:
        certainty_of: Returns ``Views.certainty`` of some images with crops of these scales,
            float [n, M + 1].
    """
    information = dict[Scales, float]()
    for scales in SCALES:
        mean = certainty_of(scales).double().mean(dim=0)
        information[scales] = float(torch.special.entr(mean[:-1]).sum() - mean[-1])
    best, default = max(information, key=lambda scales: information[scales]), SCALES[-1]
    chosen = best if information[best] > _CLEARLY * information[default] else default
    values = ", ".join(f"{value:.2f} with {list(scales)}" for scales, value in information.items())
    inform(f"scales of boxes: {list(chosen)}, by the information of crops about classes ({values})")
    return chosen


def summaries_of(
    inputs: TargetInputs,
    crop: Crops,
    summarize: Callable[[Tensor], Tensor],
    images: Sequence[str] | None = None,
) -> Tensor:
    """Apply a function to the teacher's features of each image's boxes.

    The crops of each image are encoded separately, so that its summary is bit-equal for any other
    images and number of processes.

    Args:
        inputs: The target's inputs.
        crop: Makes the crops; it is sent to worker processes.
        summarize: Maps the normalised features [V, D] of an image's boxes to float [K].
        images: Sources of labelled images; None: the unlabelled images that need a target.

    Returns:
        Summaries of all images, float32 [N, K].
    """
    sources = inputs.pool.images.take(inputs.pool.targeted) if images is None else Names.of(images)

    def load(rows: Indices) -> Iterable[Batch]:
        make = partial(_crops, inputs.labels.splits.open_image, crop)
        one_by_one = BatchSampler(range(len(rows)), 1, drop_last=False)
        return read_in_workers(make, sources.take(rows), one_by_one, inputs.num_workers)

    encode = inputs.encoder()

    def network(crops: Tensor) -> Tensor:
        return summarize(crop.features(encode(crops)))[None]

    return inputs.rows(len(sources), load, network, "crops of images")


def _crops(open_image: OpenImage, crop: Crops, sources: list[str]) -> Batch:
    (source,) = sources
    return Batch(crop(open_image(source)))


def log_odds_of(scores: Tensor) -> Tensor:
    """Standardise the scores of the pool's images by class to log odds, float32 [N, C].

    The result is bit-equal for any order of the images.
    """
    # sums over sorted values do not depend on the order
    logs = scores.double().clamp_min(1e-6).log()
    ordered = logs.sort(dim=0).values
    spread = ordered.std(dim=0, correction=0).clamp_min(1e-6)
    odds = _SHARPNESS * ((logs - ordered.mean(dim=0)) / spread - _MARGIN)
    return odds.float().clamp(-LIMIT, LIMIT)


def _multi_hot(inputs: TargetInputs) -> Tensor:
    """Return the labels of the labelled images for all, or only the base classes, bool [n, K]."""
    labeled = len(inputs.labels.tuning_class_names)
    has = torch.zeros(len(inputs.labeled), labeled, dtype=torch.bool)
    for row, record in zip(has, inputs.labeled, strict=True):
        row[list(record.labels)] = True
    return has


def _negative_vectors(inputs: TargetInputs) -> Tensor:
    file = inputs.teacher.folder / NEGATIVE_VECTORS_FILE
    if not file.is_file():
        return inputs.vectors.vectors[:0]
    negatives = ClassVectors.load(file)
    inputs.vectors.require_teacher(negatives)
    return negatives.vectors
