"""TunedPrompts, the file of stage 1's result; ``targets.frozen_teacher`` encodes with it."""

import json
import operator
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import AfterValidator, Field, JsonValue, TypeAdapter
from torch import Tensor

from kdpl.clip.clip import Clip, ImageClip
from kdpl.clip.identity import ClipConfig, TeacherSettings
from kdpl.clip.loading import load_clip, load_image_clip
from kdpl.clip.modules import fingerprint
from kdpl.errors import ArtifactError, ConfigError, WeightsError, reason, visible
from kdpl.prompts.method import PromptMethod, prompt_method
from kdpl.prompts.vision import PromptConfig
from kdpl.runtime.artifacts import Text, metadata, parse_metadata, read_tensors, write_tensors

KIND = "tuned prompts"
VERSION = 2

_REMEDY = "run stage 1 to its end, or give the run folder of a teacher"


def _modest(size: PromptConfig) -> PromptConfig:
    if not (0 <= size.length <= 1000 and 0 <= size.depth <= 256):
        raise ValueError("no prompts have this size")
    return size


@metadata
class PromptSettings(TeacherSettings):
    """The metadata of tuned prompts that encoding needs."""

    method: Text  # name or class path
    # see PromptMethod.settings
    method_settings: Annotated[dict[str, JsonValue], Field(exclude_if=operator.not_)] = field(
        default_factory=dict
    )
    vision: Annotated[PromptConfig, AfterValidator(_modest)]
    text: Annotated[PromptConfig, AfterValidator(_modest)]
    text_fingerprint: Text


@metadata
class TunedPrompts(PromptSettings):
    """A teacher's prompts: the float32 ``tensors`` that their method saved, and metadata."""

    tensors: dict[str, Tensor]

    @cached_property
    def teacher(self) -> str:
        """Fingerprint of the tuned teacher: its prompts, their use, and the weights of its CLIP."""
        # teachers of one CLIP without prompts differ in their context alone
        words = f"{self.method} {self.vision} {self.text} {self.context!r} {self.text_fingerprint}"
        if self.method_settings:
            words += f" {json.dumps(self.method_settings, sort_keys=True)}"
        digest = fingerprint([*self.tensors.items(), (words, torch.empty(0))])
        return digest[:16] + self.clip.fingerprint[:16]

    @property
    def image_fingerprint(self) -> str:
        """Fingerprint of what image features depend on: without visual prompts, the CLIP alone."""
        plain = self.method == "independent" and self.vision.depth == 0
        return self.clip.fingerprint if plain else self.teacher

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        settings = TypeAdapter(PromptSettings).dump_python(self, mode="json")
        write_tensors(path, KIND, VERSION, self.tensors, {**settings, "teacher": self.teacher})

    @classmethod
    def load(cls, path: Path) -> "TunedPrompts":
        """Read the file; an ArtifactError if it is missing, damaged, changed or another version."""
        tensors, values = read_tensors(path, KIND, VERSION, _REMEDY)
        teacher = values.pop("teacher", None)
        settings = parse_metadata(PromptSettings, values, str(path), _REMEDY)
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32 or not tensor.isfinite().all():
                what = f"a tensor '{visible(name[:60])}' that is not finite float32"
                raise ArtifactError(f"{path} holds {what}: {_REMEDY}")
        prompts = cls(tensors=tensors, **vars(settings))
        if prompts.teacher != teacher:
            raise ArtifactError(f"{path} holds other prompts than its fingerprint says: {_REMEDY}")
        return prompts

    def load_clip(self) -> Clip:
        """Load the CLIP of the prompts; a WeightsError if that fails or it has changed."""
        clip = load_clip(self._config)
        self._require_weights(clip, clip.text_fingerprint)
        return clip

    def load_image_clip(self) -> ImageClip:
        """Load the image half of that CLIP like ``load_clip``, without checking the text half."""
        clip = load_image_clip(self._config)
        self._require_weights(clip, self.text_fingerprint)
        return clip

    @property
    def _config(self) -> ClipConfig:
        clip, images = self.clip, cast(Any, self.preprocessing)
        trained_on = images.mean, images.std, images.resize_mode
        return ClipConfig(clip.model, clip.pretrained, clip.quick_gelu, *trained_on)

    def _require_weights(self, clip: ImageClip, text_fingerprint: str) -> None:
        loaded = clip.identity.fingerprint, text_fingerprint
        if loaded != (self.clip.fingerprint, self.text_fingerprint):
            raise WeightsError(
                f"the weights {self.clip.pretrained!r} of {self.clip.model} are not the weights "
                "that the teacher was tuned on: restore them, or run stage 1 again"
            )

    def build_method(self, clip: ImageClip) -> PromptMethod:
        """Build the prompt method, frozen; an ArtifactError for another CLIP or unknown method."""
        try:
            method = prompt_method(self.method).restore(
                self.vision, self.text, self.context, clip, self.tensors, self.method_settings
            )
        except (ConfigError, ValueError, TypeError) as error:
            raise ArtifactError(
                f"the tuned prompts do not fit {clip.identity.model} ({reason(error)}): use the "
                "CLIP that the teacher was tuned on, and the package of its prompt method"
            ) from error
        return method.eval().requires_grad_(False)
