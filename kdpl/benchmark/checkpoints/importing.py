"""Comparison of a published checkpoint with a model, and the callback that puts its tensors there."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.benchmark.checkpoints.names import Published
from kdpl.errors import ConfigError, WeightsError
from kdpl.runtime.files import write_text
from kdpl.runtime.messages import inform
from kdpl.runtime.run_folder import LAST, handed_over

RECORD_FILE = "import.json"
"""File in a run's folder with the name and SHA-256 of the file that was imported."""

_FLOAT32_TOLERANCE = 1e-5


def require_same_clip(published: Published, towers: Mapping[str, Mapping[str, Tensor]], log_scale: float) -> set[str]:
    """Compare CLIP's own weights in the file with those of a CLIP as it was loaded.

    A weight in half precision may differ by one rounding step, since it was rounded once or twice on its way.

    Args:
        published: The file.
        towers: State dicts of the towers ``image`` and ``text``.
        log_scale: Logarithm of the logit scale.

    Returns:
        Names in the file that the CLIP does not have.

    Raises:
        WeightsError: A weight differs; the first one is named.
    """
    unknown = set()
    for name, (tower, key, theirs) in published.clip.items():
        if key in towers[tower]:
            _require_same(published, name, theirs, towers[tower][key])
        else:
            unknown.add(name)
    if published.logit_scale is not None:
        _require_same(published, "logit_scale", published.logit_scale.flatten(), torch.tensor([log_scale]))
    return unknown


def _require_same(published: Published, name: str, theirs: Tensor, ours: Tensor) -> None:
    same_shape = theirs.shape == ours.shape
    if same_shape and _is_same(theirs, ours.detach().cpu()):
        return
    shapes = f"has shape {list(theirs.shape)} there and {list(ours.shape)} here"
    difference = "has other values there" if same_shape else shapes
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
        ConfigError: The settings ask for prompts of another size, for no projector, or for another CLIP or teacher.
    """
    ours = _prompt_sizes(own)
    changes = [
        f"model.init_args.{option} to {size}"
        for option, size in _prompt_sizes(published.learned).items()
        if ours.get(option) != size
    ]
    if changes:
        raise ConfigError(
            f"{published.file} has prompts of another size than the settings ask for: set {' and '.join(changes)}"
        )
    for name, tensor in published.learned.items():
        if name not in own:
            raise ConfigError(
                f"{published.file} has a projector, the settings ask for a student without one: use the settings "
                "of the published student"
            )
        if tensor.shape != own[name].shape:
            raise ConfigError(
                f"{published.file} has {name} as {list(tensor.shape)}, the settings need {list(own[name].shape)}: set "
                f"model.init_args.clip to the CLIP of that {published.kind}, and for a student model.init_args.teacher "
                "to its teacher"
            )


def _prompt_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes of prompts by the settings that ask for them."""
    sizes: dict[str, int] = {}
    for name in ("vision_prompts.tokens", "encoder.prompts.tokens"):
        if name in tensors:
            sizes |= {"vision_prompts.length": tensors[name].shape[1], "vision_prompts.depth": len(tensors[name])}
    if "text_prompts.context" in tensors:
        sizes["text_prompts.length"] = len(tensors["text_prompts.context"])
        sizes["text_prompts.depth"] = 1 + len(tensors["text_prompts.deep"])
    return sizes


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
            write_text(folder / RECORD_FILE, json.dumps(self._record, indent=2))
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
    """Raise a ConfigError if a folder holds anything but the import of this file."""
    there = folder / RECORD_FILE
    same = there.is_file() and json.loads(there.read_text(encoding="utf-8")) == record
    if (handed_over(folder) or (folder / LAST).is_file()) and not same:
        raise ConfigError(
            f"{folder} holds something other than the import of {file}: choose another --out, or remove that folder"
        )
