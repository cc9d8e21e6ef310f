"""Training of a student's projector on stored features, as a run would train it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from kdpl.clip import CosineHead
from kdpl.optim import OptimConfig, build_optimizer
from kdpl.prompts.projector import Projector
from kdpl.tasks import MULTI_CLASS

_BATCHES = 4  # of a run in each batch, at twice its rate: a third of the time (docs/estimate.md)


@dataclass(frozen=True)
class ProjectorTraining:
    """Settings of a student whose projector alone learns.

    Attributes:
        class_vectors: The teacher's, float32 [C, D].
        logit_scale: Scale of the student's logits.
        weight: Weight λ of the KL divergence.
        temperature: Its temperature τ.
        optim: Optimiser and schedule of the run.
        batch_size: Images of a batch of the run.
        epochs: Epochs of the run.
        whole: Whether the projector is all that the run's student learns.
    """

    class_vectors: Tensor
    logit_scale: float
    weight: float
    temperature: float
    optim: OptimConfig
    batch_size: int
    epochs: int
    whole: bool

    def fit(self, features: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """Train a projector; returns its logits [B, C] as a function of features [B, W].

        Args:
            features: The projector's input for V views of each image, the first as in evaluation,
                [N, V, W].
            targets: Logits of the target distributions, float [N, C].
        """
        images, views, width = features.shape
        batch = min(_BATCHES * self.batch_size, images)
        steps = images // batch
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            projector = Projector(width, self.class_vectors.shape[1]).train()
            head = CosineHead(self.class_vectors)

            def logits(rows: Tensor) -> Tensor:
                encoded = F.normalize(projector(rows.float()), dim=-1)
                scored: Tensor = head(encoded, self.logit_scale)
                return scored

            optim = self._optim()
            built = build_optimizer(
                projector.parameters(), optim, self.epochs, lambda: steps * self.epochs
            )
            optimizer, schedule = built["optimizer"], cast(Any, built["lr_scheduler"])
            for _ in range(self.epochs):
                # half of the images as in evaluation
                drawn = torch.randint(0, max(views - 1, 1), (images,)) + 1
                view = torch.where(torch.rand(images) < 0.5, 0, drawn.clamp_max(views - 1))
                for rows in torch.split(torch.randperm(images), batch)[:steps]:
                    loss = self.weight * MULTI_CLASS.divergence(
                        logits(features[rows, view[rows]]), targets[rows], self.temperature
                    )
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    if schedule["interval"] == "step":
                        schedule["scheduler"].step()
                if schedule["interval"] == "epoch":
                    schedule["scheduler"].step()
        projector.eval().requires_grad_(False)
        return logits

    def _optim(self) -> OptimConfig:
        rate = _BATCHES**0.5 * self.optim.lr
        warmup = self.optim.warmup_steps
        return replace(self.optim, lr=rate, warmup_steps=warmup and -(-warmup // _BATCHES))
