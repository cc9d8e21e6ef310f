"""Convolutional towers with channels last and without: a frozen forward pass, and a training step without update."""

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch

from benchmarks.settings import Settings
from kdpl.clip import ClipConfig, Frozen, ImageTower, load_image_clip

NETWORKS: Mapping[str, int | None] = {
    "timm:efficientnet_b0": 96,
    "timm:mobilenetv4_conv_small": 96,
    "timm:regnety_004": 96,
    "timm:resnet18": 96,
    "timm:resnet50": 96,
    "RN50": None,
    "timm:convnext_atto": 96,
}
"""Networks, and the size of their images; None for a CLIP, which has its own. kdpl leaves the last one alone."""

MINIATURES: Mapping[str, int | None] = {"timm:test_efficientnet": 32}

CONTIGUOUS, LAST = "contiguous", "channels last"
_FORMATS = {CONTIGUOUS: torch.contiguous_format, LAST: torch.channels_last}

Sides = dict[str, Callable[[], object]]


def format_sides(name: str, image_size: int | None, settings: Settings) -> dict[str, Sides]:
    """What is timed of a network, ``frozen`` and ``trained``, each in both formats."""
    tower = load_image_clip(ClipConfig(name, "random", image_size=image_size)).image_tower.to(
        settings.torch_device
    )
    size = tower.preprocessing.image_size
    images = torch.randint(
        256, (settings.batch_size, 3, size, size), dtype=torch.uint8, device=settings.torch_device
    )
    frozen, trained = Sides(), Sides()
    for title, memory_format in _FORMATS.items():
        own = deepcopy(tower).eval()
        own.use_memory_format(memory_format)
        trained[title] = _step(deepcopy(own).requires_grad_(True).train(), images, settings)
        stored = Frozen(own)
        stored.store_in(settings.autocast or torch.float32)
        frozen[title] = _forward(stored.module, images, settings)
    return {"frozen": frozen, "trained": trained}


def _forward(tower: ImageTower, images: torch.Tensor, settings: Settings) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> None:
        with settings.precise():
            tower(images)

    return run


def _step(tower: ImageTower, images: torch.Tensor, settings: Settings) -> Callable[[], object]:
    def run() -> None:
        tower.zero_grad()
        with settings.precise():
            loss = tower(images).square().mean()
        loss.backward()

    return run
