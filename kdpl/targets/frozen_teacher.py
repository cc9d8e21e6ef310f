"""The frozen teacher of a student: image tower and prompts of stage 1, and the class vectors."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from kdpl.class_vectors import ClassVectors
from kdpl.clip.modules import normalized
from kdpl.clip.towers.image import ImageTower
from kdpl.errors import ArtifactError, ConfigError
from kdpl.prompts.method import PromptMethod
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.run_folder import PROMPTS_FILE


class FrozenTeacher(nn.Module):
    """The tuned teacher of a run's folder: encodes images to features, and features to logits."""

    def __init__(self, folder: Path, vectors: ClassVectors) -> None:
        super().__init__()
        self.folder = folder
        self.vectors = vectors
        self.head = vectors.head()
        self.tower: ImageTower | None = None
        self.method: PromptMethod | None = None

    @property
    def tuned(self) -> bool:
        """True if it was tuned on labels, so it may have seen them."""
        return bool(self._prompts().tensors)

    @property
    def image_identity(self) -> str:
        """What image features depend on; teachers that differ in their text prompts share it."""
        return self._prompts().image_fingerprint

    def load(self) -> None:
        """Load image tower and prompts; an ArtifactError or WeightsError if they do not fit.

        A student that needs no teacher, or has all features in a cache, skips this, and relies on
        the manifest of the cache; only this method compares the prompts with the class vectors.
        """
        # the prompts, checked against the class vectors, and then their CLIP
        prompts = self._prompts()
        if prompts.teacher != self.vectors.teacher:
            raise ArtifactError(
                f"the class vectors were frozen by another teacher than the one in {self.folder}: "
                "give the class vectors and the folder of one run"
            )
        clip = prompts.load_image_clip()
        device = self.head.class_vectors.device
        self.tower = clip.image_tower.to(device)
        self.method = prompts.build_method(clip).to(device)

    def unload(self) -> None:
        """Free the memory of image tower and prompts."""
        self.tower = self.method = None

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Encode images uint8 [B, 3, S, S] into normalised features, float32 [B, D].

        The tower computes in the caller's autocast context. A ConfigError before ``load``, and for
        images of another size than the teacher's.
        """
        tower, method = self._loaded_for(images)
        return method.encode_images(tower, images)

    @torch.no_grad()
    def both_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images as ``features`` does, and into pooled features without prompts.

        The pooled features, before the projection, are normalised as well, float32 [B, W]. This
        takes one pass of the tower without visual prompts, and two with them.
        """
        tower, method = self._loaded_for(images)
        pooled = tower.pooled(images)
        if method.images_are_plain:
            return normalized(tower.project(pooled)), normalized(pooled)
        return method.encode_images(tower, images), normalized(pooled)

    def _loaded_for(self, images: Tensor) -> tuple[ImageTower, PromptMethod]:
        # refuse another size here, with a remedy
        size = self.vectors.preprocessing.image_size
        if images.shape[-1] != size:
            raise ConfigError(
                f"the teacher takes images of {size} pixels, not {images.shape[-1]}: let the "
                "datamodule make a view for the teacher, as DomainDataModule does"
            )
        if self.tower is None or self.method is None:
            raise ConfigError("the teacher's image tower is not loaded: call load() first")
        return self.tower, self.method

    def logits(self, features: Tensor) -> Tensor:
        """Return logits [B, C] of features [B, D] with the teacher's scale."""
        return cast(Tensor, self.head(features, self.vectors.logit_scale))

    def _prompts(self) -> TunedPrompts:
        return TunedPrompts.load(self.folder / PROMPTS_FILE)
