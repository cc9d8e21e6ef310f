"""The teacher as stage 2 has it: image tower, tuned visual prompts and class vectors, all frozen; no text tower."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpl.class_vectors import ClassVectors
from kdpl.clip.head import CosineHead
from kdpl.clip.image import ImageTower
from kdpl.errors import ArtifactError, ConfigError
from kdpl.prompts import PromptMethod
from kdpl.prompts.tuned import FILE as PROMPTS_FILE
from kdpl.prompts.tuned import TunedPrompts


class FrozenTeacher(nn.Module):
    """Images to features, and features to logits, as the tuned teacher computes them.

    Args:
        folder: The run folder of stage 1, which ``load`` reads the image tower's prompts from.
        vectors: Its class vectors.
    """

    def __init__(self, folder: Path, vectors: ClassVectors) -> None:
        super().__init__()
        self.folder = folder
        self.vectors = vectors
        self.head = CosineHead(vectors.vectors)
        self.tower: ImageTower | None = None
        self.prompts: PromptMethod | None = None

    def load(self) -> None:
        """Load image tower and prompts, unless that was done: a student with all features in a cache needs neither.

        Raises:
            ArtifactError: Prompts and class vectors are missing or not of one teacher.
            WeightsError: The teacher's CLIP cannot be had, or is another one than it was tuned on.
        """
        if self.tower is not None:
            return
        prompts = TunedPrompts.load(self.folder / PROMPTS_FILE)
        if prompts.teacher != self.vectors.teacher:
            raise ArtifactError(
                f"the class vectors were frozen by another teacher than the one in {self.folder}: give the class "
                "vectors and the folder of one run"
            )
        clip = prompts.load_image_clip()
        device = self.head.class_vectors.device
        self.tower, self.prompts = clip.image_tower.to(device), prompts.restore(clip).to(device)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Encode images uint8 [B, 3, S, S] into normalised features, float32 [B, D].

        Images of another size than the teacher's, as a student may take, are resized.

        Raises:
            ConfigError: The tower was not loaded.
        """
        if self.tower is None or self.prompts is None:
            raise ConfigError("the teacher's image tower is not loaded: call load() first")
        size = self.tower.preprocessing.image_size
        if images.shape[-1] != size:
            pixels = images.float().div(255)
            images = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return self.prompts.encode_images(self.tower, images)

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [B, C] of features [B, D], with the teacher's own scale."""
        logits: Tensor = self.head(features, self.vectors.logit_scale)
        return logits
