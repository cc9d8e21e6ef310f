"""The student's encoder: a small CLIP image tower, with visual prompts and a projector into the teacher's embedding."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpl.clip.float32 import Float32Module
from kdpl.clip.frozen import Frozen, Trained
from kdpl.clip.image import ImageTower
from kdpl.prompts.vision import VisionPrompts


class Projector(Float32Module):
    """Maps the student's embedding to the teacher's: Linear, BatchNorm, ReLU, Linear (PromptKD, section 3.3).

    The published code writes it as 1×1 convolutions, which is the same function. It computes in float32 whatever the
    precision setting.

    Args:
        in_dim: The student's embed_dim d.
        out_dim: The teacher's embed_dim D.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_dim, out_dim, dtype=torch.float32),
            nn.BatchNorm1d(out_dim, dtype=torch.float32),
            nn.ReLU(inplace=True),
            nn.Linear(out_dim, out_dim, dtype=torch.float32),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Project features [B, d] to [B, D], not normalised."""
        with torch.autocast(features.device.type, enabled=False):
            projected: Tensor = self.layers(features.float())
        return projected


class StudentEncoder(nn.Module):
    """Image to normalised feature: in the teacher's embedding, or without a projector in the student's own.

    Args:
        tower: The student's image tower.
        prompt_length: Visual prompt tokens per layer, n.
        prompt_depth: Layers with prompts of their own, J; 0 for none.
        out_dim: The teacher's embed_dim D; None leaves the projector out.
        fine_tune: Train the tower as well, which is frozen otherwise.
    """

    def __init__(
        self, tower: ImageTower, prompt_length: int, prompt_depth: int, out_dim: int | None, fine_tune: bool = False
    ) -> None:
        super().__init__()
        self.tower: Frozen[ImageTower] | Trained[ImageTower] = Trained(tower) if fine_tune else Frozen(tower)
        self.prompts = VisionPrompts(prompt_length, prompt_depth, tower) if prompt_depth else None
        self.projector = Projector(tower.embed_dim, out_dim) if out_dim is not None else None

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S], uint8 or float in [0, 1], into normalised features, float32 [B, D]."""
        tower = self.tower.module
        features = tower(images) if self.prompts is None else self.prompts(tower, images)
        if self.projector is not None:
            features = self.projector(features)
        return F.normalize(features.float(), dim=-1)
