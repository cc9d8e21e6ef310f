"""TunedPrompts: what stage 1 learnt, as whoever comes after it reads it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from kdpl.clip.identity import LARGEST_LOGIT_SCALE, ClipIdentity, Preprocessing
from kdpl.clip.image import ImageTower, PromptableImageTower, promptable
from kdpl.clip.loading import Clip, ClipConfig, ImageClip, fingerprint, load_clip, load_image_clip
from kdpl.clip.text import TextTower
from kdpl.errors import ArtifactError, WeightsError, visible
from kdpl.prompts.text import TextPrompts, Tokenize
from kdpl.prompts.vision import VisionPrompts
from kdpl.runtime.artifacts import read_tensors, write_tensors
from kdpl.runtime.fields import Fields

ClipT = TypeVar("ClipT", bound=ImageClip)

KIND = "tuned prompts"
VERSION = 1
FILE = "prompts.safetensors"
"""Name of the file in a teacher's run folder."""

_REMEDY = "run stage 1 to its end, or give the run folder of a teacher"
_VISION, _CONTEXT, _DEEP = "vision_prompts.tokens", "text_prompts.context", "text_prompts.deep"


@dataclass(frozen=True)
class TunedPrompts:
    """A teacher's prompts, the CLIP that they belong into, and the fingerprint that ties class vectors to both.

    Attributes:
        tensors: The prompts by name: ``vision_prompts.tokens`` [J, n, W], ``text_prompts.context`` [n, W] and
            ``text_prompts.deep`` [J - 1, n, W], as far as the teacher has them.
        clip: The CLIP that they were tuned on.
        logit_scale: The teacher's factor on cosine similarities, exponentiated.
        context: The words before a class name that the text prompts were started from; None if from noise.
        preprocessing: What the teacher expects of images.
        teacher: Fingerprint of the tuned teacher.
    """

    tensors: Mapping[str, Tensor]
    clip: ClipIdentity
    logit_scale: float
    context: str | None
    preprocessing: Preprocessing
    teacher: str

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Tensor],
        clip: ClipIdentity,
        logit_scale: float,
        context: str | None,
        preprocessing: Preprocessing,
    ) -> "TunedPrompts":
        """Take the prompts of a teacher and work out its fingerprint, from them and the CLIP's."""
        # without prompts to tell them apart, the words alone make two teachers of one CLIP
        words = (f"context {context!r}", torch.empty(0))
        teacher = fingerprint([*tensors.items(), words])[:16] + clip.fingerprint[:16]
        return cls(tensors, clip, logit_scale, context, preprocessing, teacher)

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        fields = {
            "clip": asdict(self.clip),
            "logit_scale": self.logit_scale,
            "context": self.context,
            "preprocessing": asdict(self.preprocessing),
            "teacher": self.teacher,
        }
        write_tensors(path, KIND, VERSION, self.tensors, fields)

    @classmethod
    def load(cls, path: Path) -> "TunedPrompts":
        """Read the file.

        Raises:
            ArtifactError: It is missing, damaged, of an unknown version or its prompts are not those it names.
        """
        tensors, fields = read_tensors(path, KIND, VERSION, _REMEDY)
        _require_prompts(tensors, path)
        checked = Fields(fields, str(path), _REMEDY)
        prompts = cls.of(
            tensors,
            ClipIdentity.from_fields(checked.section("clip")),
            checked.positive("logit_scale", LARGEST_LOGIT_SCALE),
            checked.text_or_none("context"),
            Preprocessing.from_fields(checked.section("preprocessing")),
        )
        if prompts.teacher != checked.text("teacher"):
            raise ArtifactError(f"{path} holds other prompts than its fingerprint says: {_REMEDY}")
        return prompts

    def load_clip(self) -> Clip:
        """Load the CLIP that they were tuned on.

        Raises:
            WeightsError: It cannot be had, or its weights are not those that it had then.
        """
        return self._checked(load_clip(self._clip_config()))

    def load_image_clip(self) -> ImageClip:
        """Load the image half of the CLIP that they were tuned on.

        Raises:
            WeightsError: It cannot be had, or its weights are not those that it had then.
        """
        return self._checked(load_image_clip(self._clip_config()))

    def _clip_config(self) -> ClipConfig:
        return ClipConfig(self.clip.model, self.clip.pretrained, self.clip.quick_gelu)

    def _checked(self, clip: ClipT) -> ClipT:
        if clip.identity.fingerprint != self.clip.fingerprint:
            raise WeightsError(
                f"the weights {self.clip.pretrained!r} of {self.clip.model} are not those that the teacher was tuned "
                "on: restore them, or run stage 1 again"
            )
        return clip

    def vision_prompts(self, tower: ImageTower) -> VisionPrompts | None:
        """Give the visual prompts for a tower, frozen; None if the teacher has none.

        Raises:
            ArtifactError: They are for a tower of another width.
        """
        tokens = self.tensors.get(_VISION)
        if tokens is None:
            return None
        depth, length, width = tokens.shape
        _require_tower("an image", width, depth, promptable(tower))
        prompts = VisionPrompts(length, depth, tower)
        prompts.tokens = nn.Parameter(tokens, requires_grad=False)
        return prompts

    def text_prompts(self, tower: TextTower, tokenize: Tokenize) -> TextPrompts | None:
        """Give the text prompts for a tower, frozen; None if the teacher has none.

        Raises:
            ArtifactError: They are for a tower of another width.
        """
        context = self.tensors.get(_CONTEXT)
        if context is None:
            return None
        deep = self.tensors[_DEEP]
        (length, width), depth = context.shape, 1 + len(deep)
        _require_tower("a text", width, depth, tower)
        prompts = TextPrompts(length, depth, None, tower, tokenize)
        prompts.context = nn.Parameter(context, requires_grad=False)
        prompts.deep = nn.Parameter(deep, requires_grad=False)
        return prompts


def prompt_tensors(vision_tokens: Tensor | None, text_prompts: TextPrompts | None) -> dict[str, Tensor]:
    """Give copies of a teacher's prompts under the names of ``TunedPrompts.tensors``."""
    tensors = {} if vision_tokens is None else {_VISION: vision_tokens}
    if text_prompts is not None:
        tensors |= {_CONTEXT: text_prompts.context, _DEEP: text_prompts.deep}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _require_prompts(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are no prompts, or whose sizes do not go together."""
    sizes = {_VISION: 3, _CONTEXT: 2, _DEEP: 3}
    for name, tensor in tensors.items():
        if name not in sizes or tensor.ndim != sizes[name] or tensor.dtype != torch.float32:
            raise ArtifactError(
                f"{path} holds a tensor '{visible(name[:60])}' of type {tensor.dtype} and shape {tuple(tensor.shape)}, "
                f"which are no prompts: {_REMEDY}"
            )
        # the deep text prompts of a teacher of depth 1 are none
        if not tensor.isfinite().all() or (tensor.numel() == 0 and name != _DEEP):
            raise ArtifactError(f"{path} holds prompts '{name}' that are empty or not finite: {_REMEDY}")
    context, deep = tensors.get(_CONTEXT), tensors.get(_DEEP)
    if (context is None) != (deep is None) or (
        context is not None and deep is not None and deep.shape[1:] != context.shape
    ):
        raise ArtifactError(f"{path} holds text prompts of which a part is missing or of another size: {_REMEDY}")


def _require_tower(kind: str, width: int, depth: int, tower: PromptableImageTower | TextTower) -> None:
    if width != tower.width or depth > len(tower.blocks):
        raise ArtifactError(
            f"the tuned prompts are for {kind} tower of width {width} and at least {depth} layers, this one has "
            f"width {tower.width} and {len(tower.blocks)} layers: use the CLIP that the teacher was tuned on"
        )
