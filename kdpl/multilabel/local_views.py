"""Targets of several labels with few or no labels: what the teacher sees in crops of each image.

A CLIP's feature of a whole image is mostly of its largest object; in a small crop there is often
one object alone. After the ideas of CCD (arXiv 2503.16873) and SPARC (arXiv 2502.16911). All
constants are those that were best for training pages (docs/several_labels.md).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from kdpl.class_vectors import ClassVectors
from kdpl.confidence.words import NEGATIVE_VECTORS_FILE
from kdpl.data.batches import Batch
from kdpl.data.datasets import OpenImage
from kdpl.data.names import Indices, Names
from kdpl.data.splits import labels_of
from kdpl.errors import ArtifactError, ConfigError
from kdpl.multilabel.crops import Crops
from kdpl.multilabel.task import MultiLabel
from kdpl.runtime.artifacts import read_tensors, write_tensors
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import Origin, digest, require_same
from kdpl.runtime.predictions import spread
from kdpl.targets.inputs import TargetInputs
from kdpl.targets.prepared import REMEDY, PreparedTarget, rows_of
from kdpl.targets.views import load_in_workers
from kdpl.tasks import MULTI_CLASS

LOCAL_VIEWS_FILE = "local_views.safetensors"
"""The targets of all unlabelled images, in a run's folder."""

LIMIT = math.log(0.99 / 0.01)
"""Largest log odds of a target, of which none is quite sure."""

# of the probability over standardised scores: how steep it is, and where it is one half
_SHARPNESS, _MARGIN = 2.0, 0.5

_KIND = "targets from local views"
_VERSION = 3

# labelled images that the probe is fitted to, whose crops are kept at once
_MOST_LABELED = 2000

# weight of the texts beside a probe, and its inverse regularisation times the features' width
_TEXT = 0.25
_STRENGTH = 30.0


@dataclass(eq=False)
class LocalViews(PreparedTarget):
    """Log odds of the classes of an image, from the teacher's predictions for crops of it.

    With labels, a probe on the features of crops is multiplied with those predictions, and labelled
    images have their labels.

    The teacher predicts for each crop one of the classes or, if its folder has negative vectors, a
    word for something else. What is found of a class, s = Σ_v p_v², counts sure crops more than
    many unsure ones. Its logarithm is standardised by class over the pool, since a CLIP prefers
    some names wherever it looks, and the image has the class with probability σ(2z − 1), but not
    less than 0.01 nor more than 0.99.

    The targets are made before the first step and written to ``local_views.safetensors`` in the
    run's folder, from where they are read when the run is resumed.

    Attributes:
        scales: The shorter edge of an image over the edges of boxes; 1 is the whole image.
        count: Number of boxes in an image, which should be above that of its objects.
    """

    scales: tuple[float, ...] = (1, 2.5, 3, 3.5, 4, 4.5)
    count: int = 8

    def __post_init__(self) -> None:
        if min(self.scales, default=0) < 1 or max(self.scales) == 1:
            raise ConfigError(
                f"scales of local views are {list(self.scales)}, expected numbers of at least 1, "
                "and one above: set [1, 2.5, 3, 3.5, 4, 4.5]"
            )
        if self.count < 1:
            raise ConfigError(f"count of local views must be at least 1, not {self.count}: set 8")
        self._rows, self._log_odds = torch.empty(0), torch.empty(0)

    @classmethod
    def require_task(cls, task: str) -> None:
        """Raise a ConfigError for images of one class each."""
        if task != MultiLabel.name:
            raise ConfigError(
                "the target local_views is for images of several labels, and these have one each: "
                "set label_separator, or another target"
            )

    @property
    def uses_teacher(self) -> bool:
        """False: all is known before the first step."""
        return False

    def logits(self, predicted: Tensor, indices: Tensor) -> Tensor:
        """Return log odds of the target [B, C]; a ConfigError before ``prepare``."""
        if not len(self._rows):
            raise ConfigError(
                "the targets of local views are not there: fit the student by its command, "
                "which makes them"
            )
        return self._log_odds[self._rows[indices]]

    def prepare(self, inputs: TargetInputs) -> None:
        """Look at the crops, or read earlier results.

        Raises:
            ArtifactError: These are of other data or settings.
            ConfigError: Images have one label each.
        """
        self.require_task(inputs.teachers[0].task)
        negatives = _negative_vectors(inputs, inputs.teachers[0])

        def make(path: Path, origin: Origin) -> None:
            log_odds = self._make(inputs, negatives)
            images = torch.from_numpy(np.asarray(inputs.indices)).long()
            tensors, fields = {"images": images, "log_odds": log_odds}, {"made_from": origin}
            inputs.on_first_process(lambda: write_tensors(path, _KIND, _VERSION, tensors, fields))

        words = digest([negatives.cpu().numpy().tobytes()])
        settings = {"target": asdict(self), "negative vectors": words}
        file, origin = inputs.kept(LOCAL_VIEWS_FILE, settings, make)
        remedy = "remove it, and run the same command again"
        tensors, fields = read_tensors(file, _KIND, _VERSION, remedy)
        require_same(str(file), fields.get("made_from"), origin, REMEDY, kind=ArtifactError)
        self._rows = rows_of(tensors["images"]).to(inputs.device)
        self._log_odds = tensors["log_odds"].to(inputs.device)

    def _make(self, inputs: TargetInputs, negatives: Tensor) -> Tensor:
        """Return the log odds of the pool's images, float32 [N, C]."""
        vectors = inputs.teachers[0]
        crops = Crops(self.scales, self.count, vectors.preprocessing.resizing)
        texts = vectors.logit_scale * torch.cat([vectors.vectors, negatives]).to(inputs.device)
        views = Views(texts, len(vectors.vectors))
        has = _multi_hot(inputs)
        chosen = spread(range(len(has)), _MOST_LABELED)
        what = f"{len(inputs.indices)} images, with {len(negatives)} words for other things"
        inform(f"looking at crops of {what} and {len(chosen)} of {len(has)} labelled images")
        if _tells_apart(has[chosen]):
            sources = [inputs.labeled[row].source for row in chosen]
            views = views.tuned(summaries_of(inputs, crops, views.best, sources), has[chosen])
        elif inputs.labeled:
            inform(
                "the labelled images tell too little apart to learn from their crops, which takes "
                "two classes and images without one of them: the texts alone decide"
            )
        log_odds = log_odds_of(summaries_of(inputs, crops, views.scores)).cpu()

        # what is known is learned as it is
        known = dict(zip((r.source for r in inputs.labeled), has, strict=True))
        for row, image in enumerate(inputs.indices.tolist() if known else []):
            if (own := known.get(inputs.pool[image])) is not None:
                log_odds[row, : len(own)] = torch.where(own, LIMIT, -LIMIT)
        return log_odds


@dataclass(frozen=True)
class Views:
    """What is found in the crops of an image, by the teacher's texts and, with labels, a probe.

    Attributes:
        texts: Vectors of the classes and then of other things, times the teacher's scale, [M, D].
        classes: The number C of classes.
        weight: Of the probe, float [D, C + 1]; None: without labels there is none.
        bias: Of the probe, float [C + 1].
    """

    texts: Tensor
    classes: int
    weight: Tensor | None = None
    bias: Tensor | None = None

    def probabilities(self, features: Tensor) -> Tensor:
        """Return the probability of each class in each crop, float [V, C].

        With a probe, p ∝ text^¼ · probe over the classes and nothing of them.
        """
        logits = features @ self.texts.T
        if self.weight is None or self.bias is None:
            return MULTI_CLASS.probabilities(logits)[:, : self.classes]
        own, others = logits[:, : self.classes], logits[:, self.classes :]
        nothing = others if others.shape[1] else own.mean(dim=1, keepdim=True)
        text = torch.cat([own, nothing.logsumexp(dim=1, keepdim=True)], dim=1)
        probe = features @ self.weight + self.bias
        both = _TEXT * MULTI_CLASS.log_probabilities(text) + MULTI_CLASS.log_probabilities(probe)
        return MULTI_CLASS.probabilities(both)[:, : self.classes]

    def scores(self, features: Tensor) -> Tensor:
        """Return what is found of each class in an image of crops [V, D], float [C]."""
        return self.probabilities(features).square().sum(dim=0)

    def best(self, features: Tensor) -> Tensor:
        """Return the features of the surest crop of each class in an image, float [C · D]."""
        return features[MULTI_CLASS.labels(self.probabilities(features).T)].flatten()

    def tuned(self, best: Tensor, has: Tensor) -> "Views":
        """Return the same with a probe that tells the classes of crops, and none of them.

        It is a logistic regression on the surest crop of each class in each labelled image: that
        of a class which the image has shows it, and that of another shows nothing.

        Args:
            best: The crops' features, float [n, C · D].
            has: Classes of the images, of those that labels tell of, bool [n, K]: images of two
                classes, and some without one of these.
        """
        from sklearn.linear_model import LogisticRegression

        known = has.shape[1]
        crops = best.view(len(best), self.classes, -1)[:, :known]
        rows = crops.flatten(0, 1).cpu().double()
        shown = torch.where(has, torch.arange(known), self.classes).flatten()
        mean, spread = rows.mean(dim=0), rows.std(dim=0) + 1e-6
        model = LogisticRegression(C=_STRENGTH / rows.shape[1], max_iter=1000)
        model.fit(((rows - mean) / spread).numpy(), shown.numpy())

        # classes that no image has are as likely as before, but for the probe's mean
        weight = rows.new_zeros(rows.shape[1], self.classes + 1)
        bias = rows.new_full((self.classes + 1,), float(model.intercept_.mean()))
        weight[:, model.classes_] = torch.from_numpy(model.coef_.T)
        bias[model.classes_] = torch.from_numpy(model.intercept_)
        weight /= spread[:, None]
        bias -= mean @ weight
        device = self.texts.device
        return replace(self, weight=weight.float().to(device), bias=bias.float().to(device))


def summaries_of(
    inputs: TargetInputs,
    crop: Crops,
    summarize: Callable[[Tensor], Tensor],
    images: Sequence[str] | None = None,
) -> Tensor:
    """Return what a function makes of the first teacher's features of each image's boxes.

    The crops of an image are encoded by themselves, so that its summary is the same bit for bit
    whatever the other images and the number of processes.

    Args:
        inputs: The target's inputs.
        crop: Makes the crops; it is sent to worker processes.
        summarize: Of the normalised features [V, D] of an image's boxes, float [K].
        images: Sources of labelled images; None: the unlabelled ones that need a target.

    Returns:
        Summaries of all images, float32 [N, K].
    """
    sources = inputs.pool.take(inputs.indices) if images is None else Names.of(images)

    def load(rows: Indices) -> Iterable[Batch]:
        make = partial(_crops, inputs.open_image, crop)
        one_by_one = BatchSampler(range(len(rows)), 1, drop_last=False)
        return load_in_workers(make, sources.take(rows), one_by_one, inputs.num_workers)

    def network(crops: Tensor) -> Tensor:
        return summarize(crop.features(inputs.encoder(crops)))[None]

    return inputs.rows(len(sources), load, network, "crops of images")


def _crops(open_image: OpenImage, crop: Crops, one: list[str]) -> Batch:
    return Batch(crop(open_image(one[0])))


def log_odds_of(scores: Tensor) -> Tensor:
    """Return the log odds of an image's classes from its scores among the pool's, float32 [N, C].

    The order of the images does not matter, to the last bit.
    """
    logs = scores.double().clamp_min(1e-6).log()
    ordered = logs.sort(dim=0).values
    spread = ordered.std(dim=0, correction=0).clamp_min(1e-6)
    odds = _SHARPNESS * ((logs - ordered.mean(dim=0)) / spread - _MARGIN)
    return odds.float().clamp(-LIMIT, LIMIT)


def _tells_apart(has: Tensor) -> bool:
    """Whether labels [n, K] show two classes and, of one of all, an image without it."""
    return int(has.any(dim=0).sum()) >= 2 and not bool(has.all())


def _multi_hot(inputs: TargetInputs) -> Tensor:
    """Return the classes of the labelled images, of those that labels tell of, bool [n, K]."""
    known = len(inputs.class_names) if inputs.num_base is None else inputs.num_base
    has = torch.zeros(len(inputs.labeled), known, dtype=torch.bool)
    for row, record in zip(has, inputs.labeled, strict=True):
        row[list(labels_of(record))] = True
    return has


def _negative_vectors(inputs: TargetInputs, vectors: ClassVectors) -> Tensor:
    """Return the vectors of words for other things, of the first teacher, [M, D]; M may be 0."""
    file = inputs.teacher_folder / NEGATIVE_VECTORS_FILE
    if not file.is_file():
        return vectors.vectors[:0]
    negatives = ClassVectors.load(file)
    vectors.require_teacher(negatives)
    return negatives.vectors
