"""Whether a published checkpoint fits the settings: the CLIP that it was made on, and the sizes of what was trained."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from kdpl.benchmark.checkpoints.names import Published
from kdpl.errors import ConfigError, WeightsError

_FLOAT32_TOLERANCE = 1e-5
_CONTEXT, _DEEP = "text_prompts.context", "text_prompts.deep"
_PROMPTS = {
    "vision_prompts.tokens": ("visual", "vision_prompts"),
    "encoder.prompts.tokens": ("visual", "vision_prompts"),
    _CONTEXT: ("text", "text_prompts"),
}


def require_same_clip(published: Published, towers: Mapping[str, Mapping[str, Tensor]], log_scale: float) -> set[str]:
    """Compare CLIP's own weights in the file with those of the CLIP that the settings name.

    A weight in half precision may be off by one rounding step, since it was rounded once or twice on its way.

    Args:
        published: The checkpoint.
        towers: State dicts of the towers, by tower.
        log_scale: Logarithm of that CLIP's factor on cosine similarities.

    Returns:
        Names in the file that the CLIP does not have.

    Raises:
        WeightsError: A weight differs; the first one is named.
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
    elif not _same(theirs, ours.detach().cpu()):
        difference = "has other values there"
    else:
        return
    raise WeightsError(
        f"{published.file} was made on another CLIP than the settings name ({name} {difference}): set "
        f"model.init_args.clip to the CLIP of that {published.kind}"
    )


def _same(theirs: Tensor, ours: Tensor) -> bool:
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
    """Compare what was trained with what the settings would train.

    Args:
        published: The checkpoint.
        own: The module's parameters and buffers by name.

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
                f"{len(tensor)} dimensions, the settings' CLIPs want {name} as {list(own[name].shape)}: set "
                "model.init_args.clip and model.init_args.teacher to the CLIP and the teacher of that student"
            )


class _Size(NamedTuple):
    length: int
    depth: int
    width: int


# of a tower without prompts
_NONE = _Size(0, 0, 0)


def _size(name: str, tensors: Mapping[str, Tensor]) -> _Size:
    tensor = tensors.get(name)
    if tensor is None:
        return _NONE
    if name == _CONTEXT:
        return _Size(tensor.shape[0], 1 + len(tensors[_DEEP]), tensor.shape[1])
    return _Size(tensor.shape[1], tensor.shape[0], tensor.shape[2])


def _require_same_prompts(published: Published, title: str, setting: str, theirs: _Size, ours: _Size) -> None:
    option = f"model.init_args.{setting}"
    orders = [
        f"{option}.{part} to {getattr(theirs, part)}"
        for part in ("length", "depth")
        if getattr(theirs, part) != getattr(ours, part)
    ]
    if orders:
        given = "none" if ours == _NONE else f"{ours.length} tokens in {ours.depth} layers"
        raise ConfigError(
            f"{published.file} has {title} prompts of {theirs.length} tokens in {theirs.depth} layers, the settings "
            f"ask for {given}: set {' and '.join(orders)}"
        )
    if theirs.width != ours.width:
        raise WeightsError(
            f"{published.file} has {title} prompts of width {theirs.width}, the tower that the settings name has width "
            f"{ours.width}: set model.init_args.clip to the CLIP of that {published.kind}"
        )
