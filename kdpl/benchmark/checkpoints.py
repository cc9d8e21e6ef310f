"""Checkpoints published by PromptKD's authors: reading, comparison of their CLIP, import."""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from kdpl.errors import ArtifactError, ConfigError, WeightsError, reason
from kdpl.runtime.files import read_json, write_json
from kdpl.runtime.messages import inform, warn
from kdpl.runtime.origin import require_same
from kdpl.runtime.run_folder import LAST, handed_over

Kind = Literal["teacher", "student"]

RECORD_FILE = "import.json"
"""File in a run's folder with the name and SHA-256 of the imported file."""

_CONTEXT = "prompt_learner.ctx"
_VISION = "image_encoder.VPT"
_PROJECTOR = "VPT_image_trans.conv1."
# token embeddings of the class names in tuning and in the test
_BUFFERS = re.compile(r"prompt_learner\.token_(prefix|suffix)2?")
# names of CLIP's weights, with their tower
_CLIP_NAMES = {
    "teacher": re.compile(r"((?:prompt_learner\.ZS_)?image|text)_encoder\.(.+)"),
    "student": re.compile(r"(image)_encoder\.(.+)"),
}
_FLOAT32_TOLERANCE = 1e-5
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class Published:
    """The content of a published checkpoint.

    Attributes:
        learned: The trained tensors and batch norm's statistics under the names of kdpl's modules;
            floats in float32.
        clip: CLIP's weights that the file has, by their name in the file: the tower (``image`` or
            ``text``), the weight's name in it, and the weight.
        logit_scale: Logarithm of the factor on cosine similarities.
        unknown: Names without a counterpart in kdpl.
    """

    file: Path
    kind: Kind
    learned: Mapping[str, Tensor]
    clip: Mapping[str, tuple[str, str, Tensor]]
    logit_scale: Tensor | None
    unknown: tuple[str, ...]


def read_published(file: Path, kind: Kind) -> Published:
    """Read a published checkpoint."""
    content = read_torch_file(file)
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ArtifactError(f"{file} has no state_dict: give a checkpoint of the authors")
    held = "student" if any(name.startswith(_PROJECTOR) for name in state) else "teacher"
    if held == "teacher" and _CONTEXT not in state:
        raise ArtifactError(
            f"{file} has no prompts and no projector of the authors: give one of their checkpoints"
        )
    if held != kind:
        raise ArtifactError(
            f"{file} holds a {held}, expected a {kind}: use the command import {held}"
        )

    part = _Part(file, dict(state))
    visual = part.take_prompts(_VISION, "image_encoder")
    if kind == "teacher":
        text = part.take_prompts(_CONTEXT, "text_encoder")
        learned = {
            "text_prompts.context": text[0],
            "text_prompts.deep": text[1:],
            "vision_prompts.tokens": visual,
        }
    else:
        learned = {"encoder.prompts.tokens": visual, **part.take_projector()}

    clip: dict[str, tuple[str, str, Tensor]] = {}
    for name in list(part.left):
        if match := _CLIP_NAMES[kind].fullmatch(name):
            clip[name] = ("text" if match[1] == "text" else "image", match[2], part.take(name))
    scale = part.take("logit_scale") if "logit_scale" in part.left else None
    unknown = tuple(name for name in part.left if not _BUFFERS.fullmatch(name))
    return Published(file, kind, learned, clip, scale, unknown)


@dataclass
class _Part:
    """The tensors of a state dict that have not been taken yet."""

    file: Path
    left: dict[str, object]

    def take(self, name: str) -> Tensor:
        tensor = self.left.pop(name, None)
        if not isinstance(tensor, Tensor):
            raise ArtifactError(
                f"{self.file} has no tensor {name}: it is incomplete, download it again"
            )
        return tensor

    def take_learned(self, name: str) -> Tensor:
        """Take a trained tensor in float32; an ArtifactError unless all its values are finite."""
        tensor = self.take(name)
        if not tensor.isfinite().all():
            raise ArtifactError(
                f"{self.file} holds {name}, expected finite numbers: give another checkpoint"
            )
        return tensor.to(torch.float32, copy=True)

    def take_prompts(self, first: str, tower: str) -> Tensor:
        """Take a tower's prompts [depth, n, W]."""
        pattern = re.compile(rf"{tower}\.transformer\.resblocks\.(\d+)\.VPT_shallow")
        layers = [int(match[1]) for name in self.left if (match := pattern.fullmatch(name))]
        # a gap raises an error that names the missing tensor
        deep = [
            f"{tower}.transformer.resblocks.{layer}.VPT_shallow"
            for layer in range(1, max(layers, default=0) + 1)
        ]
        try:
            return torch.stack([self.take_learned(name) for name in (first, *deep)])
        except RuntimeError as error:
            raise ArtifactError(
                f"{self.file} has a {tower} with prompts of several sizes: give another checkpoint"
            ) from error

    def take_projector(self) -> dict[str, Tensor]:
        """Take the projector; its 1×1 convolutions [out, in, 1, 1] become linear layers."""
        names = "0.weight 0.bias 1.weight 1.bias 1.running_mean 1.running_var 3.weight 3.bias"
        taken = {name: self.take_learned(_PROJECTOR + name) for name in names.split()}
        taken |= {name: tensor.flatten(1) for name, tensor in taken.items() if tensor.ndim > 1}
        batches = self.take(f"{_PROJECTOR}1.num_batches_tracked")
        taken["1.num_batches_tracked"] = batches.to(torch.int64, copy=True)
        return {f"encoder.projector.layers.{name}": tensor for name, tensor in taken.items()}


def require_same_clip(
    published: Published, towers: Mapping[str, Mapping[str, Tensor]], log_scale: float
) -> set[str]:
    """Compare CLIP's weights in the file with a freshly loaded CLIP.

    A weight in half precision may differ by one rounding step, since it may have been rounded
    twice.

    Returns:
        Names in the file that the CLIP does not have.
    """
    pairs = {
        name: (theirs, towers[tower].get(key))
        for name, (tower, key, theirs) in published.clip.items()
    }
    if published.logit_scale is not None:
        pairs["logit_scale"] = (published.logit_scale.flatten(), torch.tensor([log_scale]))
    for name, (theirs, ours) in pairs.items():
        if ours is not None and not (
            theirs.shape == ours.shape and _is_same(theirs, ours.detach().cpu())
        ):
            raise WeightsError(
                f"{published.file} was made on another CLIP than the settings name ({name} "
                f"differs): set model.init_args.clip to the CLIP of that {published.kind}"
            )
    return {name for name, (_, ours) in pairs.items() if ours is None}


def _is_same(theirs: Tensor, ours: Tensor) -> bool:
    relative, absolute = 0.0, float(_FLOAT32_TOLERANCE * ours.abs().max())
    if theirs.dtype in (torch.float16, torch.bfloat16):
        limits = torch.finfo(theirs.dtype)
        # the distance from a number to the next one above it
        relative, absolute = limits.eps, limits.eps * limits.smallest_normal
        ours = ours.to(theirs.dtype)
    return torch.allclose(theirs.double(), ours.double(), rtol=relative, atol=absolute)


@dataclass(eq=False)
class TakeOver(Callback):
    """Copies the published tensors into the module of the same CLIP.

    Writes a checkpoint and the file's record.
    """

    published: Published
    record: Mapping[str, str]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare the CLIPs before the module rounds its CLIP to the trainer's precision."""
        published, module = self.published, cast(Any, pl_module)
        if published.kind == "teacher":
            towers = {"image": module.image_tower.module.visual, "text": module.text_tower.module}
        else:
            towers = {"image": module.encoder.tower.module.visual}
        states = {name: tower.state_dict() for name, tower in towers.items()}
        not_in_clip = require_same_clip(published, states, math.log(module.logit_scale))
        unknown = sorted({*published.unknown, *not_in_clip})
        if unknown:
            shown = ", ".join(unknown[:_NAMES_SHOWN])
            warn(
                f"left out of {published.file}, because they have no place here: {len(unknown)} "
                f"tensors ({shown}{', …' if len(unknown) > _NAMES_SHOWN else ''})"
            )

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the tensors now that the module is complete and before anything is written."""
        published = self.published
        tensors = {**dict(pl_module.named_parameters()), **dict(pl_module.named_buffers())}
        targets = {name.removeprefix("prompts."): tensor for name, tensor in tensors.items()}
        for name, tensor in published.learned.items():
            if name not in targets or targets[name].shape != tensor.shape:
                ours = f"as {list(targets[name].shape)}" if name in targets else "without it"
                raise ConfigError(
                    f"{published.file} has {name} as {list(tensor.shape)}, the settings ask for a "
                    f"{published.kind} {ours}: set depth and length of the prompts, clip and "
                    "teacher as in that file"
                )

        for name, tensor in published.learned.items():
            targets[name].copy_(tensor)
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            write_json(folder / RECORD_FILE, self.record)
        trainer.save_checkpoint(folder / LAST, weights_only=False)
        taken, compared = len(published.learned), len(published.clip)
        inform(
            f"{published.file}: {taken} trained tensors taken over, {compared} weights of its "
            "CLIP compared"
        )


def record_for(folder: Path, published: Path) -> dict[str, str]:
    """Return the name and SHA-256 of a file; a ConfigError if a folder holds another's run."""
    with published.open("rb") as opened:
        content = hashlib.file_digest(opened, "sha256").hexdigest()
    record, file = {"file": published.name, "sha256": content}, folder / RECORD_FILE
    if handed_over(folder) or (folder / LAST).is_file():
        before = read_json(file) if file.is_file() else None
        remedy = "choose another --out, or remove that folder"
        require_same(f"the run in {folder}", before, record, remedy)
    return record


class _StandIn:
    """Replaces any class or function of a file and its instances; takes all, does nothing."""

    __slots__ = ()

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _empty_dict(*_: object) -> dict[Any, Any]:
    return {}  # torch sets items on exact dicts alone


def read_torch_file(path: Path) -> Any:
    """Read a file of ``torch.save``, version 1.6 or later, onto the CPU; nothing it names is run.

    ``torch.load(weights_only=True)`` builds plain values.

    Returns:
        The saved tensors, numbers, strings and plain containers; a stand-in for anything else.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: check the path")
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
        with safe_globals(
            [(_empty_dict if n == "collections.defaultdict" else _StandIn, n) for n in names]
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise many on damaged bytes
        # leave out torch's advice to load the file without this protection
        why = "" if "weights_only" in str(error) else f" ({reason(error)})"
        raise ArtifactError(
            f"{path} is damaged, or not a checkpoint as torch.save writes them since version "
            f"1.6{why}: fetch it again"
        ) from error
