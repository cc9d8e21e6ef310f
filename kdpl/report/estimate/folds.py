"""Predictions of labelled images by models that have not seen their labels. Pure tensors."""

from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from kdpl.data.probe import classes_of, fit_probe, linear_student
from kdpl.targets.refinement.experts import Evidence, Result, assign, mix
from kdpl.targets.refinement.refine import RefinementConfig
from kdpl.tasks import MULTI_CLASS

STUDENT, TARGETS, ZERO_SHOT = "student", "targets", "zero-shot teacher"
PROBE, LARGER_PROBE = "probe of the student's network", "probe of the teacher's network"
PUBLISHED = "published student"
MODELS = (STUDENT, TARGETS, ZERO_SHOT, PROBE, LARGER_PROBE, PUBLISHED)

_FLOOR = 1e-3  # probability spread over all classes, since assignments are nearly one-hot
_ASIDE = 5  # one in so many unlabelled images is kept from the student whose confidence counts


@dataclass(frozen=True)
class Frozen:
    """Frozen features of N images, of which the first are the pool.

    Attributes:
        evidence: Features, predictions and labels, as refined targets take them, of a teacher that
            has not seen the labels.
        still: The teacher's log probabilities of the evaluation view, float [N, C].
        student: Normalised pooled features of the student's network, float [N, W].
        teacher: Normalised pooled features of the teacher's network, float [N, V].
        pool: Number of images in the pool.
    """

    evidence: Evidence
    still: Tensor
    student: Tensor
    teacher: Tensor
    pool: int


class Measured(NamedTuple):
    """Labelled images that were predicted by models that saw the labels of other images.

    Attributes:
        images: Indices of the images, [J]; all labelled images if no label can be spared.
        hits: By model, whether each image was predicted right, float [J]; if no label can be
            spared, only of models that see no labels.
        labels: Labelled groups a class that the models saw, in the mean.
        confidence: Of the student with all labels, on images that it was not fitted on: the mean of
            its confidence and the share on which the probe of its network agrees.
    """

    images: Tensor
    hits: dict[str, Tensor]
    labels: float
    confidence: float


def taught(frozen: Frozen, targets: Tensor, images: Tensor) -> Tensor:
    """Return predictions [J, C] of images [J] by a linear student of the rest of the pool."""
    fitted = torch.arange(len(targets), device=targets.device) < frozen.pool
    fitted[images] = False
    smooth = (1 - _FLOOR) * targets + _FLOOR / targets.shape[1]
    weight, bias = linear_student(frozen.student[fitted], smooth[fitted])
    return MULTI_CLASS.probabilities(frozen.student[images] @ weight + bias)


def measure(frozen: Frozen) -> Measured:
    """Measure models on labelled images that they have not seen.

    The settings of refinement and probes are chosen once, by all labels, as a run chooses them;
    targets, students and probes are made anew for each fold of the labels.
    """
    evidence, text = frozen.evidence, MULTI_CLASS.probabilities(frozen.evidence.log_probabilities)

    # targets, and students of them, of all candidates, as the best is not known before
    results = list[tuple[Result, Tensor]]()

    def distil(result: Result, _: int) -> None:
        if len(result.judges):
            results.append((result, taught(frozen, result.assignments, result.judges)))

    settings = assign(evidence, RefinementConfig(), on_result=distil)
    images = torch.nonzero(evidence.truth >= 0).flatten()
    if settings.strength is None:
        # no label to learn from
        return Measured(images[:0], {}, 0.0, 0.0)
    # each split's, mixed
    shares = [*settings.shares.values()]
    splits = len(results) // len(shares)
    of_splits = [list(zip(*results[i::splits], strict=True)) for i in range(splits)]
    results = [
        (
            made[0]._replace(assignments=mix([result.assignments for result in made], shares)),
            mix(rows, shares),
        )
        for made, rows in of_splits
    ]
    refused = settings.right is not None and settings.right[1] < settings.right[0]

    # labelled images judge models that see no label, and others where a label can be spared
    judged = torch.cat([images[:0], *(result.judges for result, _ in results)])
    spared = 2 * len(classes_of(evidence.truth[judged])) >= len(classes_of(evidence.truth))
    predicted, labels = dict[str, list[Tensor]](), 0.0
    if len(judged) and spared:
        images = judged
        predicted[STUDENT] = [rows for _, rows in results]
        predicted[TARGETS] = [result.assignments[result.judges] for result, _ in results]
        for name, features in ((PROBE, frozen.student), (LARGER_PROBE, frozen.teacher)):
            predicted[name] = [_probed(features, made, settings.strength) for made, _ in results]
        labels = fmean(evidence.labels_a_class(result.labels) for result, _ in results)
    predicted[ZERO_SHOT] = [frozen.still[images]]
    predicted[PUBLISHED] = [taught(frozen, text, images)]
    truth = evidence.truth[images]
    hits = {
        name: (MULTI_CLASS.labels(torch.cat(rows)) == truth).float()
        for name, rows in predicted.items()
    }
    if refused and labels:
        # refined targets are not taken
        hits |= {STUDENT: hits[PUBLISHED], TARGETS: hits[ZERO_SHOT]}

    # what the student with all labels thinks of other images, and how often its probe agrees
    unlabeled = torch.nonzero(evidence.truth[: frozen.pool] < 0).flatten()
    aside = (unlabeled if len(unlabeled) else images)[::_ASIDE]
    targets = text if refused else settings.assignments
    student = taught(frozen, targets, aside)
    probe = _probed(
        frozen.student, Result(None, evidence.labels, aside, targets), settings.strength
    )
    agreement = (MULTI_CLASS.labels(student) == MULTI_CLASS.labels(probe)).float().mean()
    confidence = float(student.amax(dim=1).mean() + agreement) / 2
    return Measured(images, hits, labels, confidence)


def _probed(features: Tensor, result: Result, strength: float) -> Tensor:
    seen = result.labels >= 0
    probe = fit_probe(features[seen], result.labels[seen], strength)
    rows = probe.log_probabilities(features[result.judges]).exp()
    return torch.zeros_like(result.assignments[result.judges]).index_copy(1, probe.classes, rows)
