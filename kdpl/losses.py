"""Losses of both stages as pure functions, and the settings of the stage 2 loss."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from kdpl.errors import ConfigError


@dataclass(frozen=True)
class DistillationLoss:
    """Settings of the stage 2 loss, λ · τ² · KL(target ‖ student) / (B·C), which the task computes.

    Attributes:
        weight: λ; published: 1000, and 200 for FGVCAircraft, Flowers102 and DTD.
        temperature: τ.
        kind: ``kl``, as published; or the mean absolute (``l1``) or squared (``mse``) difference of
            the logits of student and teacher, without τ, for the paper's ablations.
    """

    weight: float = 1000.0
    temperature: float = 1.0
    kind: Literal["kl", "l1", "mse"] = "kl"

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.temperature <= 0:
            raise ConfigError(
                f"loss.weight is {self.weight} and loss.temperature {self.temperature}: both must "
                "be above 0"
            )


def distillation_kl(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """Compute the teacher-student KL divergence, a scalar (PromptKD, arXiv 2403.02781, eq. 5).

    At temperature 1 it is also PromptSRC's divergence between zero-shot and tuned predictions
    (arXiv 2307.06948, eq. 4).

    τ² · Σ p_t (log p_t − log p_s) / (B·C) with p = softmax(logits / τ). As in the published code,
    the sum is divided by the number of classes as well as the batch size. The caller multiplies by
    λ.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C], without gradient.
        temperature: τ.

    Returns:
        A scalar.
    """
    # both as logarithms, for numerical stability
    target = F.log_softmax(teacher_logits / temperature, dim=-1)
    predicted = F.log_softmax(student_logits / temperature, dim=-1)
    kl = F.kl_div(predicted, target, reduction="sum", log_target=True)
    return kl / student_logits.numel() * temperature**2


def feature_l1(features: Tensor, target_features: Tensor) -> Tensor:
    """Compute the mean absolute difference of normalised features [N, D] (PromptSRC, eq. 3)."""
    return F.l1_loss(features, target_features)


DIFFERENCES = {"l1": F.l1_loss, "mse": F.mse_loss}
"""Means of the differences of two tensors, by the kinds of ``DistillationLoss``."""
