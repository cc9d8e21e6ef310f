"""Comparison of a published checkpoint with a model, and the callback that puts its tensors there."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.benchmark.checkpoints.names import Published
from kdpl.errors import ConfigError, WeightsError
from kdpl.runtime.files import atomic_path
from kdpl.runtime.messages import inform
from kdpl.runtime.run_folder import LAST, handed_over
from kdpl.student import StudentDistillation
from kdpl.teacher import TeacherPromptTuning

RECORD_FILE = "import.json"
"""File in a run's folder with the name and SHA-256 of the file that was imported."""

_FLOAT32_TOLERANCE = 1e-5
_CONTEXT, _DEEP = "text_prompts.context", "text_prompts.deep"
_PROMPTS = {
    "vision_prompts.tokens": ("visual", "vision_prompts"),
    "encoder.prompts.tokens": ("visual", "vision_prompts"),
    _CONTEXT: ("text", "text_prompts"),
}


def compare_clips(published: Published, module: TeacherPromptTuning | StudentDistillation) -> set[str]:
    """Compare CLIP's own weights in the file with those of a stage's CLIP, as it was loaded.

    Returns:
        Names in the file that the CLIP does not have.

    Raises:
        WeightsError: A weight differs; the first one is named.
    """
    if isinstance(module, TeacherPromptTuning):
        towers = {"image": module.image_tower.module.visual, "text": module.text_tower.module}
    else:
        towers = {"image": module.encoder.tower.module.visual}
    states = {name: tower.state_dict() for name, tower in towers.items()}
    return require_same_clip(published, states, math.log(module.logit_scale))


def require_same_clip(published: Published, towers: Mapping[str, Mapping[str, Tensor]], log_scale: float) -> set[str]:
    """Compare as ``compare_clips`` does, with the towers' state dicts and the logarithm of the logit scale.

    A weight in half precision may differ by one rounding step, since it was rounded once or twice on its way.
    """
    unknown = set()
    for name, (tower, key, theirs) in published.clip.items():
        ours = towers[tower].get(key)
        if ours is None:
            unknown.add(name)
        else:
            _require_same(published, name, theirs, ours)
    if published.logit_scale is not None:
        _require_same(published, "logit_scale", published.logit_scale.flatten(), torch.tensor([log_scale]))
    return unknown


def _require_same(published: Published, name: str, theirs: Tensor, ours: Tensor) -> None:
    if theirs.shape != ours.shape:
        difference = f"has shape {list(theirs.shape)} there and {list(ours.shape)} here"
    elif not _is_same(theirs, ours.detach().cpu()):
        difference = "has other values there"
    else:
        return
    raise WeightsError(
        f"{published.file} was made on another CLIP than the settings name ({name} {difference}): set "
        f"model.init_args.clip to the CLIP of that {published.kind}"
    )


def _is_same(theirs: Tensor, ours: Tensor) -> bool:
    if theirs.dtype in (torch.float16, torch.bfloat16):
        # neighbouring numbers of a 16-bit format have neighbouring bit patterns
        return bool(((_rank(theirs) - _rank(ours.to(theirs.dtype))).abs() <= 1).all())
    difference = (theirs.double() - ours.double()).abs()
    return bool((difference <= _FLOAT32_TOLERANCE * ours.double().abs().max()).all())


def _rank(halves: Tensor) -> Tensor:
    """Number 16-bit floats in their order."""
    bits = halves.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def require_same_sizes(published: Published, own: Mapping[str, Tensor]) -> None:
    """Compare what was trained with the module's own parameters and buffers, by name.

    Raises:
        ConfigError: The settings ask for prompts of another size, or for none, or for another projector.
        WeightsError: The prompts are for a tower of another width.
    """
    learned = published.learned
    for name, (title, setting) in _PROMPTS.items():
        if name in learned:
            _require_same_prompts(published, title, setting, _size(name, learned), _size(name, own))
    for name, tensor in learned.items():
        if name not in own:
            raise ConfigError(
                f"{published.file} has a projector, the settings ask for a student without one: use the settings "
                "of the published student"
            )
        if tensor.shape != own[name].shape:
            raise ConfigError(
                f"{published.file} projects from {learned['encoder.projector.layers.0.weight'].shape[1]} to "
                f"{len(tensor)} dimensions, the settings' CLIPs need {name} as {list(own[name].shape)}: set "
                "model.init_args.clip and model.init_args.teacher to the CLIP and the teacher of that student"
            )


class _Size(NamedTuple):
    length: int = 0
    depth: int = 0
    width: int = 0


def _size(name: str, tensors: Mapping[str, Tensor]) -> _Size:
    """Return the size of a tower's prompts; zeros without prompts."""
    tensor = tensors.get(name)
    if tensor is None:
        return _Size()
    if name == _CONTEXT:
        return _Size(tensor.shape[0], 1 + len(tensors[_DEEP]), tensor.shape[1])
    return _Size(tensor.shape[1], tensor.shape[0], tensor.shape[2])


def _require_same_prompts(published: Published, title: str, setting: str, theirs: _Size, ours: _Size) -> None:
    option = f"model.init_args.{setting}"
    changes = [
        f"{option}.{part} to {getattr(theirs, part)}"
        for part in ("length", "depth")
        if getattr(theirs, part) != getattr(ours, part)
    ]
    if changes:
        given = f"{ours.length} tokens in {ours.depth} layers" if any(ours) else "none"
        raise ConfigError(
            f"{published.file} has {title} prompts of {theirs.length} tokens in {theirs.depth} layers, the settings "
            f"ask for {given}: set {' and '.join(changes)}"
        )
    if theirs.width != ours.width:
        raise WeightsError(
            f"{published.file} has {title} prompts of width {theirs.width}, the tower that the settings name has width "
            f"{ours.width}: set model.init_args.clip to the CLIP of that {published.kind}"
        )


class TakeOver(Callback):
    """Puts the published tensors into the module, and writes the checkpoint of a fit and the record of the file."""

    def __init__(self, published: Published, record: Mapping[str, str]) -> None:
        self._published = published
        self._record = record

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over: the module is complete now, and nothing has been written yet."""
        published = self._published
        tensors = {**dict(pl_module.named_parameters()), **dict(pl_module.named_buffers())}
        own = {name.removeprefix("prompts."): tensor for name, tensor in tensors.items()}
        require_same_sizes(published, own)
        for name, tensor in published.learned.items():
            own[name].copy_(tensor)
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero:
            with atomic_path(folder / RECORD_FILE) as temporary:
                temporary.write_text(json.dumps(self._record, indent=2), encoding="utf-8")
        trainer.save_checkpoint(folder / LAST, weights_only=False)
        saved = f", saved after epoch {published.epoch}" if published.epoch is not None else ""
        inform(
            f"{published.file} ({published.kind}{saved}): {len(published.learned)} trained tensors taken over, "
            f"{len(published.clip)} weights of its CLIP compared"
        )


def record_of(file: Path) -> dict[str, str]:
    """Return what identifies a published file: its name and SHA-256."""
    with file.open("rb") as opened:
        return {"file": file.name, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def require_own_folder(folder: Path, file: Path, record: Mapping[str, str]) -> None:
    """Refuse a folder that holds anything but the import of this file.

    Raises:
        ConfigError: It does.
    """
    there = folder / RECORD_FILE
    same = there.is_file() and json.loads(there.read_text(encoding="utf-8")) == record
    if (handed_over(folder) or (folder / LAST).is_file()) and not same:
        raise ConfigError(
            f"{folder} holds something other than the import of {file}: choose another --out, or remove that folder"
        )
