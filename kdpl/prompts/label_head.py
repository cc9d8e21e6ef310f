"""The student's second head, which learns from labels, and the mixture of both heads (DHO, arXiv 2505.07675)."""

import math
from typing import Annotated

import pydantic.dataclasses
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdpl.clip.modules import Float32Module
from kdpl.errors import ArtifactError, reason
from kdpl.prompts.student_encoder import require_tensors
from kdpl.runtime.artifacts import STRICT

_PREFIX = "label_head."


class LabelHead(Float32Module):
    """Linear layer on the student's feature, and how its prediction is mixed with that of the class vectors.

    The mixture is α softmax(own logits) + (1−α) softmax(logits / β). ``alpha`` and ``beta`` are part of the state.

    Args:
        class_vectors: Normalised class vectors [C, D], where the weights start, times ``logit_scale``; the bias is 0.
        logit_scale: The student's factor on cosine similarities.
    """

    def __init__(self, class_vectors: Tensor, logit_scale: float = 1.0, alpha: float = 0.5, beta: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(logit_scale * class_vectors.detach().float())
        self.bias = nn.Parameter(torch.zeros(len(class_vectors)))
        self.alpha, self.beta = alpha, beta

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, C] of normalised features [B, D], in float32 under autocast too."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.weight, self.bias)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of labels [B], over B·C as the losses are, so that a weight is the same for any C; a scalar."""
        return F.cross_entropy(self(features), labels) / len(self.bias)

    def mix(self, logits: Tensor, features: Tensor) -> Tensor:
        """Log probabilities [B, C] of the mixture, from the logits [B, C] by class vectors, and the features [B, D]."""
        return mix_heads(logits, self(features), self.alpha, self.beta)

    def get_extra_state(self) -> Tensor:
        """Return α and β, float64 [2]."""
        return torch.tensor([self.alpha, self.beta], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore α and β."""
        self.alpha, self.beta = state.tolist()


def mix_heads(logits: Tensor, label_logits: Tensor, alpha: float, beta: float) -> Tensor:
    """Compute log(α softmax(label_logits) + (1−α) softmax(logits / β)), all [B, C]; 0 ≤ α ≤ 1 and β > 0."""
    if alpha == 0:
        return F.log_softmax(logits / beta, dim=1)
    own = F.log_softmax(label_logits, dim=1)
    if alpha == 1:
        return own
    parts = [own + math.log(alpha), F.log_softmax(logits / beta, dim=1) + math.log1p(-alpha)]
    return torch.stack(parts).logsumexp(dim=0)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class LabelHeadSettings:
    """How a head's prediction is mixed with that of the class vectors, as a classifier's folder holds it."""

    alpha: Annotated[float, Field(ge=0, le=1)]
    beta: Annotated[float, Field(gt=0)]


def head_tensors(head: LabelHead) -> dict[str, Tensor]:
    """The head's tensors under the names that they have in a classifier's file."""
    return {f"{_PREFIX}{name}": parameter for name, parameter in head.named_parameters()}


def read_label_head(
    settings: LabelHeadSettings | None, tensors: dict[str, Tensor], class_vectors: Tensor, source: str, remedy: str
) -> LabelHead | None:
    """Build a head, if there is one, from ``head_tensors``, which are taken out of ``tensors``, or an ArtifactError."""
    if settings is None:
        return None
    head = LabelHead(class_vectors, 1.0, settings.alpha, settings.beta)
    own = head_tensors(head)
    found = {name: tensors.pop(name) for name in own.keys() & tensors.keys()}
    try:
        require_tensors(own, found)
    except ValueError as error:
        raise ArtifactError(f"{source} is damaged ({reason(error)}): {remedy}") from error
    for name, parameter in own.items():
        parameter.data.copy_(found[name])
    return head
