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
    """Images to features and logits, as the tuned teacher gives them.

    Args:
        tower: The teacher's image tower; None where all of its features are there already.
        prompts: Its tuned prompts; None without a tower.
        vectors: Its class vectors.
    """

    def __init__(self, tower: ImageTower | None, prompts: PromptMethod | None, vectors: ClassVectors) -> None:
        super().__init__()
        self.tower = tower
        self.prompts = prompts
        self.head = CosineHead(vectors.vectors)
        self.logit_scale = vectors.logit_scale

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Encode images uint8 [B, 3, S, S] into normalised features, float32 [B, D].

        A student of another image size shares its view: it is resized for the teacher.

        Raises:
            ConfigError: The tower was not loaded.
        """
        if self.tower is None or self.prompts is None:
            raise ConfigError(
                "the teacher's tower is not there: all features were to come from data.init_args.teacher_cache"
            )
        size = self.tower.preprocessing.image_size
        if images.shape[-1] != size:
            pixels = images.float().div(255)
            images = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return self.prompts.encode_images(self.tower, images)

    def logits(self, features: Tensor) -> Tensor:
        """Give logits [B, C] of features [B, D], with the teacher's own scale."""
        logits: Tensor = self.head(features, self.logit_scale)
        return logits


def load_teacher(folder: Path, vectors: ClassVectors, vectors_path: Path, with_tower: bool = True) -> FrozenTeacher:
    """Load the teacher that class vectors were frozen by.

    Args:
        folder: The run folder of stage 1.
        vectors: The class vectors.
        vectors_path: Where they came from, for messages.
        with_tower: Whether it is to encode images.

    Raises:
        ArtifactError: Prompts and class vectors are missing or not of one teacher.
        WeightsError: The teacher's CLIP cannot be had, or is another one than it was tuned on.
    """
    prompts = TunedPrompts.load(folder / PROMPTS_FILE)
    if prompts.teacher != vectors.teacher:
        raise ArtifactError(
            f"the class vectors {vectors_path} were frozen by another teacher than the one in "
            f"{folder}: give the class vectors and the folder of one run"
        )
    if not with_tower:
        return FrozenTeacher(None, None, vectors)
    clip = prompts.load_image_clip()
    if vectors.vectors.shape[1] != clip.image_tower.embed_dim:
        raise ArtifactError(
            f"the class vectors {vectors_path} have width {vectors.vectors.shape[1]}, the embedding of "
            f"their teacher {clip.identity.model} has {clip.image_tower.embed_dim}: run stage 1 again"
        )
    return FrozenTeacher(clip.image_tower, prompts.restore(clip), vectors)
