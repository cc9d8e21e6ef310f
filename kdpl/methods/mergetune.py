"""Continued distillation of a finished student (MergeTune, arXiv 2601.10497).

After the authors' ``promptkd_LMC.py``, where the line runs from the finished student, not from a
zero-shot model, which has no projector. The defaults are those of their config; their example
passes 10 for both λ of stage 2 and γ, and which ones gave their figure is not said.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpl.classifier.folder import Stored
from kdpl.clip import Frozen
from kdpl.clip.weights import mismatch
from kdpl.errors import ArtifactError, ConfigError
from kdpl.prompts.student_encoder import StudentEncoder, encoder_tensors
from kdpl.runtime.run_folder import CLASSIFIER_FOLDER
from kdpl.student import StudentDistillation
from kdpl.tasks import require_one_class


class ContinuedDistillation(StudentDistillation):
    """A student that starts as a finished one, and stays connected with it by a line of low loss.

    To the loss of stage 2 it adds β · mean over a = 1/n, 2/n, …, 1 of KL(target ‖ student at a),
    where that has the features (1 − a) f₀ + a f, not normalised again; and γ · Σ (w − w₀)² / N over
    the N trained weights. f₀ and w₀ are the finished student's; in f₀ its batch norm has the
    batch's own mean and variance, as in the authors' code.

    Args:
        start: Run folder of the finished student, with the same CLIP, sizes and teacher.
        connectivity: β.
        closeness: γ.
        points: Points of the line, n.
        settings: Those of ``StudentDistillation``.

    Raises:
        ConfigError: Settings do not fit each other, also as of ``StudentDistillation``; or the data
            have several labels for an image.
        ArtifactError: At the start of a fit: the finished student is missing, or does not fit.
    """

    finished: Frozen[StudentEncoder]

    def __init__(
        self,
        start: str,
        connectivity: float = 50.0,
        closeness: float = 100.0,
        points: int = 10,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if points < 1 or connectivity < 0 or closeness < 0 or self.loss.kind != "kl":
            raise ConfigError(
                f"points is {points}, connectivity {connectivity}, closeness {closeness} and "
                f"loss.kind {self.loss.kind}, expected 1 point or more, weights of 0 or more, and "
                "kl: correct them"
            )
        self.start, self.points = start, points
        self.connectivity, self.closeness = connectivity, closeness

    def setup(self, stage: str) -> None:
        """Take the finished student's weights before a fit, which those of a checkpoint replace."""
        require_one_class(self.domain.task, "continuing a student")
        if stage == "fit":
            self._take(Stored.read(Path(self.start) / CLASSIFIER_FOLDER))
        super().setup(stage)

    def _take(self, stored: Stored) -> None:
        own, given = encoder_tensors(self.encoder), encoder_tensors(stored.encoder)
        same = stored.vectors.teacher == self.vectors.teacher and stored.clip == self.clip
        problem = mismatch(own, given) if same else "it has another teacher or CLIP"
        if problem is not None:
            raise ArtifactError(
                f"the student in {self.start} cannot be continued ({problem}): give the settings "
                "of its run"
            )
        for name, tensor in own.items():
            tensor.data.copy_(given[name])
        # a frozen tower is shared
        tower = self.encoder.tower
        shared = {id(tower): tower} if isinstance(tower, Frozen) else {}
        self.finished = Frozen(deepcopy(self.encoder, shared))
        self.finished.module.train()

    def on_fit_start(self) -> None:
        """Leave the prompts where they are, also with ``vision_prompts.init: mean_token``."""

    def further_terms(self, images: Tensor, features: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the two terms, ``connectivity`` and ``closeness``."""
        with torch.no_grad():
            before = self.finished.module(images)

        # the mean over all points, as each has as many images
        shares = [point / self.points for point in range(1, self.points + 1)]
        line = torch.cat([(1 - a) * before + a * features for a in shares])
        targets = target.repeat(self.points, 1)
        distance = self.task.divergence(self.logits(line), targets, self.loss.temperature)

        weights = dict(self.encoder.named_parameters())
        old = self.finished.module.named_parameters()
        moved = torch.cat([(weights[name] - start).flatten() for name, start in old])
        return {
            "connectivity": self.connectivity * distance,
            "closeness": self.closeness * moved.square().mean(),
        }
