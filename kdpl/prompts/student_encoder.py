"""The student's encoder: a small CLIP image tower, visual prompts, and a projector."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from kdpl.clip.identity import Preprocessing
from kdpl.clip.modules import Frozen, Trained, require_tensors
from kdpl.clip.towers.building import (
    MOST_LAYERS,
    OPEN_CLIP_SETTINGS,
    build_tower,
    require_modest,
)
from kdpl.clip.towers.image import ImageTower
from kdpl.errors import ArtifactError, reason
from kdpl.prompts.projector import Projector
from kdpl.prompts.vision import PromptConfig, VisionPrompts
from kdpl.runtime.artifacts import metadata


@dataclass(frozen=True)
class StudentPrompts(PromptConfig):
    """Size and initialisation of a student's visual prompts.

    Attributes:
        init: ``normal`` draws them from N(0, 0.02²) as published; ``mean_token`` adds the mean
            patch token that enters their layer, over unlabelled images.
    """

    init: Literal["normal", "mean_token"] = "normal"


class StudentEncoder(nn.Module):
    """Encodes images to normalised features in the teacher's embedding space.

    Args:
        tower: The student's image tower.
        prompt_length: Visual prompt tokens per layer, n.
        prompt_depth: Number of layers with prompts, J; 0 for none.
        out_dim: The teacher's embed_dim D.
        fine_tune: Train the tower as well; otherwise it is frozen.
        projector_layers: Linear layers of the projector.
    """

    def __init__(
        self,
        tower: ImageTower,
        prompt_length: int,
        prompt_depth: int,
        out_dim: int,
        fine_tune: bool = False,
        projector_layers: int = 2,
    ) -> None:
        super().__init__()
        self.tower: Frozen[ImageTower] | Trained[ImageTower] = (
            Trained(tower) if fine_tune else Frozen(tower, keep=True)
        )
        self.prompts = VisionPrompts(prompt_length, prompt_depth, tower) if prompt_depth else None
        self.projector = Projector(tower.embed_dim, out_dim, projector_layers)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S], uint8 or float in [0, 1]; normalised, float32 [B, D]."""
        tower = self.tower.module
        features = tower(images) if self.prompts is None else self.prompts(tower, images)
        return self._projected(features)

    def of_pooled(self, pooled: Tensor) -> Tensor:
        """Encode images by what ``ImageTower.pooled`` returns for them, [B, W], without prompts."""
        tower = self.tower.module
        # stored in the dtype of the weights, and read in float32
        return self._projected(tower.project(pooled.to(next(tower.parameters()).dtype)))

    def _projected(self, features: Tensor) -> Tensor:
        return F.normalize(self.projector(features).float(), dim=-1)

    def init_at_mean_tokens(self, images: Tensor) -> None:
        """Add the mean patch tokens of images [N, 3, S, S] to any prompts, on all processes."""
        if self.prompts is None:
            return
        with self.tower.exact() as tower:
            self.prompts.init_at_mean_tokens(tower, images)
        if distributed.is_available() and distributed.is_initialized():
            # processes on different hardware round differently, so their copies would diverge
            distributed.broadcast(self.prompts.tokens.data, src=0)


@metadata
class EncoderSettings:
    """Settings of an encoder, as stored in a classifier's folder."""

    image_config: dict[str, Any]  # the image part of a model config in open_clip's form
    preprocessing: Preprocessing
    prompt_length: Annotated[int, Field(ge=0, le=1000)]
    prompt_depth: Annotated[int, Field(ge=0, le=MOST_LAYERS)]
    projector: Literal[True]
    projector_layers: Annotated[
        int, Field(ge=0, le=MOST_LAYERS, exclude_if=lambda layers: layers == 2)
    ] = 2


def encoder_tensors(encoder: StudentEncoder) -> dict[str, Tensor]:
    """Return the encoder's tensors by their names in a classifier's file, its tower included."""
    with encoder.tower.exact() as tower:
        tensors = {f"tower.{k}": v for k, v in tower.visual.state_dict().items()}
    return tensors | {
        f"encoder.{k}": v for k, v in encoder.state_dict().items() if not k.startswith("tower.")
    }


def read_encoder(
    settings: EncoderSettings, tensors: dict[str, Tensor], width: int, source: str, remedy: str
) -> StudentEncoder:
    """Build an encoder from settings and ``encoder_tensors``, for class vectors of some width."""

    def build() -> StudentEncoder:
        tower = _build_tower(settings.image_config, settings.preprocessing)
        length, depth = settings.prompt_length, settings.prompt_depth
        layers = settings.projector_layers
        return StudentEncoder(tower, length, depth, width, projector_layers=layers)

    try:
        require_modest(settings.image_config, settings.preprocessing.image_size)
        # first without memory: damaged settings may ask for any size
        with torch.device("meta"):
            expected = encoder_tensors(build())
        require_tensors(expected, tensors)
        for name, tensor in tensors.items():
            same_kind = tensor.is_floating_point() == expected[name].is_floating_point()
            if not (same_kind and tensor.isfinite().all()):
                raise ValueError(
                    f"tensor '{name}' has numbers of another type, or that are not finite"
                )
        encoder = build()
        # tower and encoder have separate prefixes in the file
        for module, prefix in ((encoder.tower.module.visual, "tower."), (encoder, "encoder.")):
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
    except ImportError as error:
        raise ArtifactError(f"{source} needs a missing package ({error}): install it") from error
    except Exception as error:  # invalid settings raise various errors in torch and open_clip
        raise ArtifactError(f"{source} is damaged ({reason(error)}): {remedy}") from error
    return encoder


def _build_tower(config: dict[str, Any], preprocessing: Preprocessing) -> ImageTower:
    if config["vision_cfg"].keys() <= OPEN_CLIP_SETTINGS:
        return build_tower(config, preprocessing)
    # a network of another library
    from kdpl.clip.loading import build_image_tower

    return build_image_tower(config, preprocessing)
