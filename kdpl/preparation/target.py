"""The base of targets that are prepared before a student's first step, and kept in a file."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.data.names import Indices, digest_names, digest_of
from kdpl.data.splits import Record
from kdpl.errors import ArtifactError
from kdpl.preparation.inputs import TargetInputs
from kdpl.student import StudentDistillation
from kdpl.targets import Target


class PreparedTarget(Target):
    """A target that is set up once for all unlabelled images, before the first step of a fit."""

    @abstractmethod
    def prepare(self, inputs: TargetInputs) -> None:
        """Set up what ``logits`` needs; called on all processes."""

    def callbacks(self) -> list[Callback]:
        """Return the callback that prepares it."""
        return [PrepareTarget(self)]


class PrepareTarget(Callback):
    """Prepares the target that the student learns, on all processes."""

    def __init__(self, target: PreparedTarget) -> None:
        self.target = target

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the target, before the training loader is made."""
        self.target.prepare(TargetInputs(trainer, cast(StudentDistillation, pl_module)))


def origin_of(
    inputs: TargetInputs,
    vectors: Iterable[Tensor],
    known: Sequence[Record],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what targets are made of, as their file notes it: text vectors, labels, settings."""
    texts = b"".join(each.numpy().tobytes() for each in vectors)
    labels = [f"{label} {source}" for source, label in known]
    groups = [f"{inputs.groups[source]} {source}" for source, _ in known if source in inputs.groups]
    return {
        "teacher": " mean ".join(teacher.teacher for teacher in inputs.teachers),
        "class_names": tuple(inputs.class_names),
        "class_vectors": hashlib.blake2b(texts, digest_size=16).hexdigest(),
        "pool": digest_of(inputs.pool),
        "labels": digest_names([*labels, *groups]),
        "settings": json.loads(json.dumps(settings)),
    }


def require_origin(
    file: Path,
    found: Mapping[str, Any],
    needed: Mapping[str, Any],
    images: Tensor,
    indices: Indices,
) -> None:
    """Raise an ArtifactError for a file whose origin, or whose images, are others."""
    # JSON has lists for tuples
    others = (each for each in needed if json.dumps(found.get(each)) != json.dumps(needed[each]))
    other = next(others, None)
    if other is not None or not np.array_equal(images.numpy(), indices):
        what = (other or "images").replace("_", " ")
        raise ArtifactError(f"{file} was made for other {what}: remove it, or choose another --out")


def rows_of(images: Tensor) -> Tensor:
    """Return the row of each image of the pool, by its index there; -1 for one that has none."""
    rows = torch.full((int(images.max()) + 1,), -1)
    rows[images] = torch.arange(len(images))
    return rows
