"""Losses of both stages, as pure functions."""

from torch import Tensor
from torch.nn import functional as F


def distillation_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the KL divergence between teacher and student predictions (PromptKD, arXiv 2403.02781, eq. 5).

    At temperature 1 it is also that of PromptSRC between zero-shot and tuned predictions (arXiv 2307.06948, eq. 4).

    τ² · Σ p_t (log p_t − log p_s) / (B·C) with p = softmax(logits / τ). As in the published code, the sum is divided by
    the number of classes as well as the batch size. The caller multiplies by λ.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C], without gradient.
        temperature: τ.

    Returns:
        A scalar.
    """
    target = F.log_softmax(teacher_logits / temperature, dim=-1)
    predicted = F.log_softmax(student_logits / temperature, dim=-1)
    kl = F.kl_div(predicted, target, reduction="sum", log_target=True)
    return kl / student_logits.numel() * temperature**2


def feature_l1(features: Tensor, target_features: Tensor) -> Tensor:
    """Compute the mean absolute difference of normalised features [N, D] (PromptSRC, eq. 3), a scalar."""
    return F.l1_loss(features, target_features)


def feature_mse(features: Tensor, target_features: Tensor) -> Tensor:
    """Compute the mean squared difference of normalised features [N, D], a scalar."""
    return F.mse_loss(features, target_features)
