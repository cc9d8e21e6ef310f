"""Predictions of labelled images by models that have not seen their labels."""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdpl.data.groups import folds
from kdpl.data.parallel import in_parallel
from kdpl.data.probe import choose_strength, classes_of, fit_probe, linear_student
from kdpl.targets.refinement.experts import Evidence, assign
from kdpl.targets.refinement.refine import RefinementConfig
from kdpl.targets.refinement.target import log_assignments
from kdpl.tasks import MULTI_CLASS

STUDENT, TARGETS, ZERO_SHOT = "student", "targets", "zero-shot teacher"
PROBE, LARGER_PROBE = "probe of the student's network", "probe of the teacher's network"
PUBLISHED = "published student"
MODELS = (STUDENT, TARGETS, ZERO_SHOT, PROBE, LARGER_PROBE, PUBLISHED)

SHARES = (1.0, 0.5, 0.25)
"""Shares of the labels outside a fold that models see."""


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
        whole: Whether the run's student learns no more than a projector.
        refinement: Settings of its targets.
    """

    evidence: Evidence
    still: Tensor
    student: Tensor
    teacher: Tensor
    pool: int
    whole: bool
    refinement: RefinementConfig


class Measured(NamedTuple):
    """Labelled images that were predicted by models that saw the labels of other images.

    Attributes:
        images: Indices of the images, [J]; all labelled images if no label can be spared.
        hits: Whether each image was predicted right, by share of the other labels that were seen
            and by model, float [J]; if no label can be spared, only of models that see no label.
        labels: Labelled groups a class that models saw, by share.
        agreement: Share of unlabelled images for which the student of all labels predicts the class
            of the teacher, and of the probe on its network; None if labels can be spared.
    """

    images: Tensor
    hits: dict[float, dict[str, Tensor]]
    labels: dict[float, float]
    agreement: tuple[float, float] | None


class Split(NamedTuple):
    """Indices of the images whose labels are seen, and of those that are judged."""

    seen: Tensor
    judges: Tensor


def part_of(evidence: Evidence, images: Tensor, share: float) -> Tensor:
    """Return this share of the groups of each class of labelled images, in their order."""
    if share == 1:
        return images
    kept = []
    for label in classes_of(evidence.truth[images]):
        of_class = images[evidence.truth[images] == label]
        groups = evidence.groups[of_class]
        first = groups[np.sort(np.unique(groups.cpu().numpy(), return_index=True)[1])]
        chosen = first[: max(round(share * len(first)), 1)]
        kept.append(of_class[torch.isin(groups, chosen)])
    return torch.cat(kept)


def models_of(split: Split, frozen: Frozen, strengths: tuple[float, float]) -> dict[str, Tensor]:
    """Return the classes [J] of the judged images by each model that sees the labels of others."""
    evidence = frozen.evidence
    labels = torch.full_like(evidence.truth, -1)
    labels[split.seen] = evidence.truth[split.seen]
    seen = replace(evidence, labels=labels, validation=torch.full_like(labels, -1))

    # the targets, and the student that learns from those of the other images
    assigned = assign(seen, frozen.refinement)
    before, after = assigned.right or (0.0, 0.0)
    text = MULTI_CLASS.probabilities(evidence.log_probabilities)
    targets = assigned.assignments if after >= before else text
    distilled = torch.arange(len(labels)) < frozen.pool
    distilled[split.judges] = False
    softened = log_assignments(targets[distilled]).exp()
    weight, bias = linear_student(frozen.student[distilled], softened)

    # all of them
    rows = {
        STUDENT: frozen.student[split.judges] @ weight + bias,
        TARGETS: targets[split.judges],
        ZERO_SHOT: frozen.still[split.judges],
    }
    predicted = {name: MULTI_CLASS.labels(logits) for name, logits in rows.items()}
    networks = ((PROBE, frozen.student), (LARGER_PROBE, frozen.teacher))
    for (name, features), strength in zip(networks, strengths, strict=True):
        probe = fit_probe(features[split.seen], labels[split.seen], strength)
        classes = MULTI_CLASS.labels(probe.log_probabilities(features[split.judges]))
        predicted[name] = probe.classes[classes]
    return predicted


def measure(frozen: Frozen) -> Measured:
    """Predict labelled images by models made from all, half and a quarter of the other labels.

    In up to five folds of whole groups, targets, student and probes are made without the labels of
    the fold. The regularisation of each probe is chosen once, by all labels.
    """
    evidence = frozen.evidence
    labeled = torch.nonzero(evidence.truth >= 0).flatten()
    none = labeled[:0]
    if not len(labeled):
        return Measured(none, {}, {}, None)
    # sort by a feature, so that folds do not depend on the order of the images
    labeled = labeled[evidence.features[labeled, 0].argsort()]
    truth, groups = evidence.truth[labeled], evidence.groups[labeled]
    fold_of = torch.from_numpy(folds(truth.cpu().numpy(), groups.cpu().numpy()))
    networks = (frozen.student, frozen.teacher)
    of_student, of_teacher = (choose_strength(x[labeled], truth, groups)[0] for x in networks)
    strengths = of_student, of_teacher

    # most classes have one label: no accuracy of what learns from labels can be known
    judged = labeled[fold_of >= 0]
    if 2 * len(classes_of(evidence.truth[judged])) < len(classes_of(truth)):
        right = (MULTI_CLASS.labels(frozen.still[labeled]) == truth).float()
        return Measured(
            labeled, {1.0: {ZERO_SHOT: right}}, {}, _agreement(frozen, labeled, strengths)
        )

    # all splits, each on a core
    splits, sizes = list[tuple[float, Split]](), dict[float, float]()
    for share in SHARES:
        for fold in range(int(fold_of.max()) + 1):
            seen = part_of(evidence, labeled[fold_of != fold], share)
            splits.append((share, Split(seen, labeled[fold_of == fold])))
        labels = torch.full_like(evidence.truth, -1)
        labels[seen] = evidence.truth[seen]
        sizes[share] = (evidence.counts[labels >= 0].sum() / len(classes_of(truth))).item()
        if sizes[share] < 2:
            # half of a label is none
            break
    predict = partial(models_of, frozen=frozen, strengths=strengths)
    parts = [split for _, split in splits]
    title = "students without a part of the labels"
    rows = list(in_parallel(predict, parts, title, at_once=1))

    images = torch.cat([split.judges for share, split in splits if share == 1])
    hits = {
        share: {
            name: torch.cat(
                [
                    (predicted[name] == evidence.truth[split.judges]).float()
                    for (of_share, split), predicted in zip(splits, rows, strict=True)
                    if of_share == share
                ]
            )
            for name in rows[0]
        }
        for share in sizes
    }
    if (published := _published(frozen, images)) is not None:
        hits[1.0][PUBLISHED] = published
    return Measured(images, hits, sizes, None)


def _published(frozen: Frozen, images: Tensor) -> Tensor | None:
    """Return whether a student of the teacher's own predictions is right on images, float [J].

    It learns from the images without a label; None if they are less than half of the pool.
    """
    unlabeled = torch.nonzero(frozen.evidence.truth[: frozen.pool] < 0).flatten()
    if 2 * len(unlabeled) < frozen.pool:
        return None
    text = frozen.evidence.log_probabilities
    targets = MULTI_CLASS.probabilities(text[unlabeled])
    weight, bias = linear_student(frozen.student[unlabeled], targets)
    predicted = MULTI_CLASS.labels(frozen.student[images] @ weight + bias)
    return (predicted == frozen.evidence.truth[images]).float()


def _agreement(
    frozen: Frozen, labeled: Tensor, strengths: tuple[float, float]
) -> tuple[float, float]:
    unlabeled = torch.nonzero(frozen.evidence.truth[: frozen.pool] < 0).flatten()[::5]
    if not len(unlabeled):
        return 0.0, 0.0
    predicted = models_of(Split(labeled, unlabeled), frozen, strengths)
    words, probe = (
        (predicted[name] == predicted[STUDENT]).float().mean().item() for name in (ZERO_SHOT, PROBE)
    )
    return words, probe
