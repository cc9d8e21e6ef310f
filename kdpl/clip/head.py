"""From normalised features to logits over class vectors."""

import torch
from torch import Tensor

from kdpl.clip.float32 import Float32Module


class CosineHead(Float32Module):
    """Frozen class vectors as a buffer; logits are scaled cosine similarities.

    Args:
        class_vectors: Normalised, float32 [C, D].
    """

    class_vectors: Tensor

    def __init__(self, class_vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("class_vectors", class_vectors.clone())

    def forward(self, features: Tensor, logit_scale: float) -> Tensor:
        """Give logits [B, C] of normalised features, float32 [B, D]."""
        return cosine_logits(features, self.class_vectors, logit_scale)


def cosine_logits(features: Tensor, class_vectors: Tensor, logit_scale: float) -> Tensor:
    """Scaled cosine similarities [B, C] of normalised features [B, D] and class vectors [C, D], in float32.

    Under autocast too: at a scale of 100 half precision would move logits by tenths.
    """
    with torch.autocast(features.device.type, enabled=False):
        return logit_scale * features @ class_vectors.T
