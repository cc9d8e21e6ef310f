"""Losses of both stages, as pure functions."""

from torch import Tensor
from torch.nn import functional as F


def distillation_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the KL divergence between teacher and student predictions (PromptKD, arXiv 2403.02781, eq. 5).

    τ² · Σ p_t (log p_t − log p_s) / (B·C) with p = softmax(logits / τ). As in the published code, the sum is divided by
    the number of classes as well as the batch size. The caller multiplies by λ.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C], without gradient.
        temperature: τ.

    Returns:
        A scalar.
    """
    return _mean_kl(teacher_logits / temperature, student_logits / temperature) * temperature**2


def zero_shot_kl(logits: Tensor, zero_shot_logits: Tensor) -> Tensor:
    """Compute the KL divergence between zero-shot and tuned predictions, over B·C (PromptSRC, arXiv 2307.06948, eq. 4).

    Both logits are [B, C], those of the frozen CLIP without gradient; the result is a scalar.
    """
    return _mean_kl(zero_shot_logits, logits)


def feature_l1(features: Tensor, target_features: Tensor) -> Tensor:
    """Compute the mean absolute difference of normalised features [N, D] (PromptSRC, eq. 3), a scalar."""
    return F.l1_loss(features, target_features)


def feature_mse(features: Tensor, target_features: Tensor) -> Tensor:
    """Compute the mean squared difference of normalised features [N, D], a scalar."""
    return F.mse_loss(features, target_features)


def _mean_kl(target_logits: Tensor, logits: Tensor) -> Tensor:
    """Compute Σ p (log p − log q) over all entries, divided by their number."""
    target = F.log_softmax(target_logits, dim=-1)
    return F.kl_div(F.log_softmax(logits, dim=-1), target, reduction="sum", log_target=True) / logits.numel()
