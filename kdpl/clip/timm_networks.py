"""Networks of timm as students: not CLIPs, but with one feature per image; trained as a whole."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from kdpl.clip.clip import ImageClip
from kdpl.clip.identity import RANDOM, ClipConfig, Preprocessing, require_resizing
from kdpl.clip.towers.building import ModelConfig, require_timm
from kdpl.clip.towers.image import ImageTower
from kdpl.clip.weights import read_state, require_weights
from kdpl.errors import WeightsError, reason

PREFIX = "timm:"
"""Addresses of these networks begin with it."""


class TimmTower(ImageTower):
    """Network of timm without its classifier, whose batch norms train."""

    train = nn.Module.train


def build_network(name: str, image_size: int, pretrained: bool = False) -> Any:
    """Build a network of timm that returns one feature per image."""
    # convolutional networks take any size
    defaults: Any = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"img_size": image_size} if defaults.fixed_input_size else {}
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)


def build_image_tower(model_config: ModelConfig, preprocessing: Preprocessing) -> TimmTower:
    """Build a network without weights; a ValueError for one that timm would fetch or read."""
    name = model_config["vision_cfg"]["timm"]
    require_timm(name)
    return TimmTower(build_network(name, preprocessing.image_size), preprocessing, model_config)


def load_image_clip(config: ClipConfig) -> ImageClip:
    """Load ``timm:NAME`` as the image half of a CLIP, without a scale of cosine similarities.

    The weights are timm's, a file's or random; a WeightsError if there are none.
    """
    name = config.model.removeprefix(PREFIX)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise WeightsError(
            f"timm has no model called {name!r}: use one of its names, such as "
            f"{', '.join([*close, 'resnet18'])}"
        )
    defaults: Any = timm.get_pretrained_cfg(name)
    size = config.image_size or defaults.input_size[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _fetch(name, size) if config.pretrained is None else build_network(name, size)
    if config.pretrained not in (None, RANDOM):
        _load_file(network, Path(str(config.pretrained)), defaults.classifier, config.model)
    width = int(getattr(network, "head_hidden_size", None) or network.num_features)
    model_config = {"embed_dim": width, "vision_cfg": {"timm": name, "image_size": size}}
    tower = TimmTower(network, preprocessing_of(name, size), model_config)
    return ImageClip.of(tower, None, config, quick_gelu=False)


def preprocessing_of(name: str, image_size: int) -> Preprocessing:
    """Return the preprocessing of timm's evaluation; errors as in ``require_resizing``."""
    defaults: Any = timm.get_pretrained_cfg(name)
    crop_pct = defaults.crop_pct
    if defaults.test_input_size == (3, image_size, image_size):
        crop_pct = defaults.test_crop_pct or crop_pct
    mode = "shortest" if defaults.crop_mode == "center" else defaults.crop_mode
    interpolation: Any = "bilinear" if defaults.interpolation == "bilinear" else "bicubic"
    mode = require_resizing(f"{PREFIX}{name}", mode)
    return Preprocessing(image_size, defaults.mean, defaults.std, mode, interpolation, crop_pct)


def _fetch(name: str, image_size: int) -> Any:
    try:
        return build_network(name, image_size, pretrained=True)
    except Exception as error:  # anything from timm, the hub client or a proxy
        raise WeightsError(
            f"cannot fetch timm's weights of {name} ({reason(error)}): fetch them where there is a "
            f"network and give their path as clip.pretrained, or set it to {RANDOM} to train from "
            "nothing"
        ) from error


def _load_file(network: Any, path: Path, classifier: str | tuple[str, ...], name: str) -> None:
    if not path.is_file():
        raise WeightsError(
            f"weights file {path} does not exist: give a file, {RANDOM}, or nothing for timm's own"
        )
    heads = (classifier,) if isinstance(classifier, str) else classifier or ()
    prefixes = tuple(f"{head}." for head in heads)
    state = {k: v for k, v in read_state(path).items() if not k.startswith(prefixes)}
    require_weights(network.state_dict(), state, str(path), name)
    network.load_state_dict(state)
