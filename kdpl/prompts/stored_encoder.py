"""A student's encoder as a classifier's folder holds it: its tensors by name, and settings to build it again from."""

import torch
from torch import Tensor

from kdpl.clip.identity import Preprocessing
from kdpl.clip.loading import build_image_tower
from kdpl.clip.settings import MOST_LAYERS, require_modest
from kdpl.errors import ArtifactError, reason
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.runtime.fields import Fields


def tensors_of(encoder: StudentEncoder) -> dict[str, Tensor]:
    """Give an encoder's tensors under the names that they have in the file."""
    # the tower is apart from the rest of the encoder, whether that carried it or owned it
    tensors = {f"tower.{k}": v for k, v in encoder.tower.module.visual.state_dict().items()}
    return tensors | {f"encoder.{k}": v for k, v in encoder.state_dict().items() if not k.startswith("tower.")}


def read_encoder(config: Fields, tensors: dict[str, Tensor], width: int, source: str, remedy: str) -> StudentEncoder:
    """Build an encoder with the tensors of a file.

    Args:
        config: The classifier's settings.
        tensors: The encoder's tensors, all of them and no others.
        width: Width of the class vectors.
        source: Where they come from, for messages.
        remedy: What a person is to do when they are damaged.

    Raises:
        ArtifactError: Settings are missing or garbled, or the tensors are not those of such an encoder.
    """
    preprocessing = Preprocessing.from_fields(config.section("preprocessing"))
    image, out_dim = config.mapping("image_config"), width if config.flag("projector") else None
    length, depth = config.whole("prompt_length"), config.whole("prompt_depth", most=MOST_LAYERS)

    def build() -> StudentEncoder:
        return StudentEncoder(build_image_tower(image, preprocessing), length, depth, out_dim)

    try:
        require_modest(image, preprocessing.image_size)
        # without memory first: the settings may ask for any size, where the file has few numbers
        with torch.device("meta"):
            _require_tensors(build(), tensors)
        encoder = build()
        encoder.tower.module.visual.load_state_dict(_part(tensors, "tower."))
        encoder.load_state_dict(_part(tensors, "encoder."))
    except Exception as error:  # whatever garbled settings make torch, open_clip or kdpl raise
        raise ArtifactError(f"{source} is damaged ({reason(error)}): {remedy}") from error
    return encoder


def _require_tensors(encoder: StudentEncoder, tensors: dict[str, Tensor]) -> None:
    own = tensors_of(encoder)
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors:
            raise ValueError(f"tensor '{name[:80]}' is {'missing' if name in own else 'unknown'}")
        found, expected = tensors[name], own[name]
        if found.shape != expected.shape or found.is_floating_point() != expected.is_floating_point():
            raise ValueError(f"tensor '{name}' is of shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
        if not found.isfinite().all():
            raise ValueError(f"tensor '{name}' has numbers that are not finite")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
