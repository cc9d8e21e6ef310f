"""Few-shot labels in stage 2: the teacher's predictions, mixed with labels where there are any."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse.typing import OpenUnitInterval
from torch import Tensor
from torch.nn import functional as F

from kdpl.runtime.artifacts import read_tensors, write_tensors
from kdpl.runtime.origin import Origin
from kdpl.targets import PreparedTarget, TargetValues
from kdpl.targets.inputs import TargetInputs
from kdpl.targets.refinement.target import further_images
from kdpl.tasks import require_one_class

_KIND, _VERSION = "labels of the pool", 1
_REMEDY = "remove it, and run the same command again"


class PoolLabels(NamedTuple):
    """Labels of the unlabelled images that are few-shot images as well.

    Attributes:
        images: Their indices in the list of unlabelled images, sorted, int64 [N].
        labels: Their labels, int64 [N].
        made_from: Origin of both.
    """

    images: Tensor
    labels: Tensor
    made_from: Origin

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        tensors = {"images": self.images, "labels": self.labels}
        write_tensors(path, _KIND, _VERSION, tensors, {"made_from": dict(self.made_from)})


@dataclass(eq=False)
class Labeled(PreparedTarget[tuple[Tensor, Tensor]]):
    """The teacher's prediction; for a labelled few-shot image in the pool, mixed with its label.

    Attributes:
        weight: Probability that the label gets; the teacher's prediction gets the rest.
    """

    file = "pool_labels.safetensors"
    weight: OpenUnitInterval = 0.5

    @classmethod
    def require_task(cls, task: str) -> None:
        """Raise a ConfigError for several labels per image."""
        require_one_class(task, "target: labeled")

    def settings(self, inputs: TargetInputs) -> Mapping[str, Any]:
        """Return that the labels are kept as they are."""
        return {"target": "labels"}

    def gather(self, inputs: TargetInputs) -> tuple[Tensor, Tensor]:
        """Return the labelled images of the pool, and their labels."""
        inputs.labels.require_shots()
        images = torch.as_tensor(inputs.pool.targeted).long()
        labels = torch.tensor(further_images(inputs)[1][: len(images)])
        return images[labels >= 0], labels[labels >= 0]

    def compute(self, gathered: tuple[Tensor, Tensor], made_from: Origin) -> PoolLabels:
        """Return the labels as they are."""
        return PoolLabels(*gathered, made_from)

    def load(self, path: Path) -> tuple[TargetValues | None, Origin | None]:
        """Read the labels; each step mixes them with the teacher's predictions."""
        tensors, fields = read_tensors(path, _KIND, _VERSION, _REMEDY)
        self._images, self._labels = tensors["images"], tensors["labels"]
        return None, fields["made_from"]

    def logits(self, predicted: Tensor, indices: Tensor) -> Tensor:
        """Return the mixture's logarithms for images with a label, and logits for the others."""
        images, labels = (part.to(indices) for part in (self._images, self._labels))
        rows, places = torch.nonzero(indices[:, None] == images, as_tuple=True)
        one_hot = F.one_hot(labels[places], predicted.shape[1])
        mixed = predicted.clone()
        teacher = predicted[rows].softmax(dim=1)
        mixed[rows] = ((1 - self.weight) * teacher + self.weight * one_hot).log()
        return mixed
