"""Reads the authors' checkpoints: their names of tensors, and the names of the same tensors here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kdpl.clip.torch_files import read_torch_file
from kdpl.errors import ArtifactError

Kind = Literal["teacher", "student"]

_CONTEXT = "prompt_learner.ctx"
_VISION = "image_encoder.VPT"
_PROJECTOR = "VPT_image_trans.conv1."
# token embeddings of the class names that the teacher was tuned on, and of those it was tested on
_BUFFERS = re.compile(r"prompt_learner\.token_(prefix|suffix)2?")
# where CLIP's own weights stand, and in which tower
_CLIP_PREFIXES = {
    "teacher": {"prompt_learner.ZS_image_encoder.": "image", "image_encoder.": "image", "text_encoder.": "text"},
    "student": {"image_encoder.": "image"},
}


@dataclass(frozen=True)
class Published:
    """The content of a published checkpoint.

    Attributes:
        file: The file.
        kind: ``teacher`` or ``student``.
        epoch: The epoch after which it was saved, if it says so.
        learned: The trained tensors and batch norm's statistics under the names of kdpl's own modules; floats in
            float32.
        clip: CLIP's own weights, as far as the file has them, by their name in the file: the tower (``image`` or
            ``text``), the weight's name in it, and the weight.
        logit_scale: Logarithm of the factor on cosine similarities.
        unknown: Names that have no place here.
    """

    file: Path
    kind: Kind
    epoch: int | None
    learned: Mapping[str, Tensor]
    clip: Mapping[str, tuple[str, str, Tensor]]
    logit_scale: Tensor | None
    unknown: tuple[str, ...]


def read_published(file: Path, kind: Kind) -> Published:
    """Read a published checkpoint, which must be of that kind.

    Raises:
        ArtifactError: It is missing, damaged, of the other kind, or lacks something.
    """
    content = read_torch_file(file)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ArtifactError(f"{file} has no state_dict, which the authors' checkpoints have: give one of those")
    is_student = any(name.startswith(_PROJECTOR) for name in state)
    if not is_student and _CONTEXT not in state:
        raise ArtifactError(
            f"{file} holds neither {_CONTEXT}, as a teacher does, nor {_PROJECTOR}*, as a student does: "
            "give a checkpoint of the authors"
        )
    found = "student" if is_student else "teacher"
    if found != kind:
        raise ArtifactError(f"{file} holds a {found}, expected a {kind}: use the command import {found}")
    part = _Part(file, dict(state))
    if kind == "teacher":
        context, *deep = part.take_prompts(_CONTEXT, "text_encoder")
        learned = {
            "text_prompts.context": context,
            "text_prompts.deep": torch.stack(deep) if deep else context.new_empty(0, *context.shape),
            "vision_prompts.tokens": torch.stack(part.take_prompts(_VISION, "image_encoder")),
        }
    else:
        learned = {"encoder.prompts.tokens": torch.stack(part.take_prompts(_VISION, "image_encoder"))}
        learned |= part.take_projector()
    clip: dict[str, tuple[str, str, Tensor]] = {}
    for name in list(part.left):
        prefix = next((prefix for prefix in _CLIP_PREFIXES[kind] if name.startswith(prefix)), None)
        if prefix is not None:
            clip[name] = (_CLIP_PREFIXES[kind][prefix], name.removeprefix(prefix), part.take(name))
    scale = part.take("logit_scale") if "logit_scale" in part.left else None
    unknown = tuple(name for name in part.left if not _BUFFERS.fullmatch(name))
    epoch = content.get("epoch")
    return Published(file, kind, epoch if type(epoch) is int else None, learned, clip, scale, unknown)


class _Part:
    """The tensors of a state dict that have not been taken yet."""

    def __init__(self, file: Path, left: dict[str, object]) -> None:
        self.file = file
        self.left = left

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            raise ArtifactError(f"{self.file} has no {name}: it is incomplete, download it again")
        tensor = self.left.pop(name)
        if not isinstance(tensor, Tensor):
            raise ArtifactError(f"{self.file} has no tensor as its {name}: it is incomplete, download it again")
        return tensor

    def take_learned(self, name: str, shape: tuple[int | None, ...]) -> Tensor:
        """Take what was trained, in float32; None in the shape stands for any size."""
        tensor = self.take(name)
        fits = tensor.ndim == len(shape) and all(b in (None, a) for a, b in zip(tensor.shape, shape, strict=True))
        if not fits or not tensor.is_floating_point():
            kind, wanted = str(tensor.dtype).removeprefix("torch."), ", ".join(str(n or "any") for n in shape)
            raise ArtifactError(
                f"{self.file} holds {name} as {kind} {list(tensor.shape)}, expected floats [{wanted}]: give a "
                "checkpoint of the authors"
            )
        if not tensor.isfinite().all():
            raise ArtifactError(
                f"{self.file} holds numbers in {name} that are not finite: its training collapsed, "
                "give another checkpoint"
            )
        return tensor.to(torch.float32, copy=True)

    def take_prompts(self, first: str, tower: str) -> list[Tensor]:
        """Take a tower's prompts [n, W], layer by layer."""
        prompts = [self.take_learned(first, (None, None))]
        pattern = re.compile(rf"{tower}\.transformer\.resblocks\.(\d+)\.VPT_shallow")
        layers = [int(match[1]) for name in self.left if (match := pattern.fullmatch(name))]
        # a gap is found by its name
        for layer in range(1, max(layers, default=0) + 1):
            name = f"{tower}.transformer.resblocks.{layer}.VPT_shallow"
            prompts.append(self.take_learned(name, tuple(prompts[0].shape)))
        return prompts

    def take_projector(self) -> dict[str, Tensor]:
        """Take the projector: 1×1 convolutions [out, in, 1, 1], which are linear layers here."""
        kernel = self.take_learned(f"{_PROJECTOR}0.weight", (None, None, 1, 1))
        out_dim = len(kernel)
        second = self.take_learned(f"{_PROJECTOR}3.weight", (out_dim, out_dim, 1, 1))
        taken = {"0.weight": kernel.flatten(1), "3.weight": second.flatten(1)}
        for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "3.bias"):
            taken[name] = self.take_learned(_PROJECTOR + name, (out_dim,))
        taken["1.num_batches_tracked"] = self.take(f"{_PROJECTOR}1.num_batches_tracked").to(torch.int64, copy=True)
        return {f"encoder.projector.layers.{name}": tensor for name, tensor in taken.items()}
