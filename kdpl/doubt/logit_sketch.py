"""A small summary of a test's logits.

It suffices to compute each prediction's confidence at any temperature.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from kdpl.callbacks.results import gather
from kdpl.classification import ClassifyingModule, EvalOutput
from kdpl.errors import ArtifactError
from kdpl.runtime.artifacts import read_tensors, write_tensors

FILE = "test_logits.safetensors"
"""Name of the file in a run's folder."""

KIND = "sketches of test logits"
VERSION = 1

_EXACT, _GROUPS = 32, 32
_REMEDY = "run the test again"


@dataclass(frozen=True)
class LogitSketch:
    """Each image's logits in falling order, minus the first.

    These are at most 64 numbers for any number of classes.

    Of more than 64 classes, the 32 highest logits are kept and the others become the means of 32
    groups of neighbours: confidences are right to 0.001 on average. Which class a logit belongs to
    is not kept.

    Attributes:
        values: float16 [N, K], K at most 64, in the order of the test images; the first column is
            0.
        counts: int64 [K], number of classes that each column stands for.
    """

    values: Tensor
    counts: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> "LogitSketch":
        """Summarise logits [N, C]."""
        falling = logits.float().sort(dim=1, descending=True).values
        falling = falling - falling[:, :1]
        if falling.shape[1] <= _EXACT + _GROUPS:
            return cls(falling.half(), torch.ones(falling.shape[1], dtype=torch.int64))
        groups = falling[:, _EXACT:].tensor_split(_GROUPS, dim=1)
        means = [group.mean(dim=1, keepdim=True) for group in groups]
        counts = [1] * _EXACT + [group.shape[1] for group in groups]
        return cls(torch.cat([falling[:, :_EXACT], *means], dim=1).half(), torch.tensor(counts))

    def confidences(self, temperature: float = 1.0) -> npt.NDArray[np.float64]:
        """Return the softmax of each image's predicted class over all classes, [N].

        The logits are divided by a temperature.
        """
        shares = self.counts * (self.values.double() / temperature).exp()
        confidences: npt.NDArray[np.float64] = (1 / shares.sum(dim=1)).numpy()
        return confidences

    def save(self, folder: Path) -> None:
        """Write the file into a run's folder, atomically."""
        write_tensors(
            folder / FILE, KIND, VERSION, {"values": self.values, "counts": self.counts}, {}
        )

    @classmethod
    def load(cls, folder: Path) -> "LogitSketch":
        """Read the file of a run's folder; raises an ArtifactError if it is missing or damaged."""
        tensors, _ = read_tensors(folder / FILE, KIND, VERSION, _REMEDY)
        nothing = torch.empty(0)
        values, counts = tensors.get("values", nothing), tensors.get("counts", nothing)
        valid = (values.dtype, counts.dtype) == (torch.float16, torch.int64)
        valid = valid and values.ndim == 2 and counts.shape == values.shape[1:]
        if (
            not valid
            or not values.isfinite().all()
            or not ((counts >= 1) & (counts <= 2**31)).all()
        ):
            raise ArtifactError(f"{folder / FILE} is damaged (its numbers are invalid): {_REMEDY}")
        return cls(values, counts)


class SaveLogitSketch(Callback):
    """Writes a sketch of a test's logits into the run's folder, in the order of the test images."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, LogitSketch]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier test."""
        self._parts = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, *_: object
    ) -> None:
        """Summarise the logits of a batch."""
        if isinstance(pl_module, ClassifyingModule) and pl_module.task.per_class:
            # several labels an image
            return
        evaluated = cast(EvalOutput, outputs)
        self._parts.append((evaluated["indices"].cpu(), LogitSketch.of(evaluated["logits"].cpu())))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the sketches of all processes and write them."""
        parts = gather(self._parts, trainer.world_size)
        if trainer.is_global_zero and parts:
            order = torch.cat([indices for indices, _ in parts]).argsort()
            values = torch.cat([sketch.values for _, sketch in parts])
            LogitSketch(values[order], parts[0][1].counts).save(Path(trainer.default_root_dir))
