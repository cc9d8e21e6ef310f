"""Finding a CLIP, loading its weights, and taking it apart into frozen towers.

Models come from open_clip's list, or from the registry, which packages extend by the entry point group ``kdpl.models``.
"""

import difflib
import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import open_clip
import torch
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from kdpl.clip.families import DEFAULT_IMAGE_SIZE, ModelConfig, image_tower, require_image_tower, text_family
from kdpl.clip.identity import RANDOM, ClipConfig, ClipIdentity, Preprocessing
from kdpl.clip.image import ImageTower
from kdpl.clip.text import TextTower
from kdpl.clip.weights import StateDict, Weights, load_weights, read_weights
from kdpl.errors import WeightsError

# METHOD: PromptSRC's text regulariser averages over the first 60 of the 80 published templates
PROMPTSRC_TEMPLATES: tuple[Callable[[str], str], ...] = tuple(OPENAI_IMAGENET_TEMPLATES[:60])

# the smallest text tower that open_clip builds, where the image tower alone is wanted
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}


@dataclass(frozen=True)
class ImageClip:
    """The image half of a frozen CLIP, which is all that stage 2 needs."""

    image_tower: ImageTower
    logit_scale: float  # of cosine similarities, already exponentiated: 100 for OpenAI's weights
    identity: ClipIdentity
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Clip(ImageClip):
    """A frozen CLIP, taken apart; ``tokenize`` makes token ids [N, context_length] of texts."""

    text_tower: TextTower
    tokenize: Callable[[list[str]], Tensor]
    text_fingerprint: str


_REGISTRY: dict[str, tuple[ModelConfig, Mapping[str, Callable[[], StateDict]]]] = {}


def register_model(name: str, config: ModelConfig, weights: Mapping[str, Callable[[], StateDict]]) -> None:
    """Make a CLIP known to configs by name, with a model config as ``kdpl.clip.families.ModelConfig``.

    ``weights`` are functions by pretrained tag that return the whole float32 state dict of the ``open_clip.CLIP``.
    """
    _REGISTRY[name] = config, weights


def load_clip(config: ClipConfig) -> Clip:
    """Load a CLIP in float32 on the CPU, frozen, in evaluation mode.

    Raises:
        WeightsError: Model or weights cannot be loaded or do not fit each other, or the text tower cannot be prompted.
    """
    model_config = _config_of(config.model)
    text_family(config.model, model_config)  # before anything is built or fetched
    model = _build(model_config)
    image = _image_half(model, config, model_config, ("",))
    family = text_family(config.model, model_config, model)
    tower = family.tower(model)
    digest = fingerprint(tower.state_dict().items())
    return Clip(**vars(image), text_tower=tower, tokenize=family.tokenizer(model), text_fingerprint=digest)


def load_image_clip(config: ClipConfig) -> ImageClip:
    """Load the image half of a CLIP, as ``load_clip`` does and with its errors; the text tower may be of any kind."""
    model_config = _config_of(config.model)
    model = _build({**model_config, "text_cfg": _NO_TEXT})
    return _image_half(model, config, model_config, ("visual.", "logit_scale"))


def build_image_tower(model_config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Build the image tower alone, with weights still to be loaded, from a model config in open_clip's form."""
    return image_tower(_build({**model_config, "text_cfg": _NO_TEXT}).visual, model_config, preprocessing)


def image_config(name: str) -> dict[str, Any]:
    """The part of a model's config that its image tower is built from."""
    config = _config_of(name)
    return {key: config[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in config}


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of names, shapes and values of tensors; 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def _config_of(name: str) -> ModelConfig:
    for entry in entry_points(group="kdpl.models"):
        entry.load()()
    known = [*_REGISTRY, *open_clip.list_models()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise WeightsError(f"no CLIP model is called {name!r}: use a name of open_clip, such as {', '.join(close)}")
    config: ModelConfig = _REGISTRY[name][0] if name in _REGISTRY else open_clip.get_model_config(name)
    require_image_tower(name, config)
    return config


def _build(model_config: ModelConfig) -> Any:
    # weights come from where the config says, not from timm's hub
    vision = {**model_config["vision_cfg"], "timm_model_pretrained": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = {name: model_config[name] for name in ("embed_dim", "text_cfg", "quick_gelu") if name in model_config}
        return open_clip.CLIP(**own, vision_cfg=vision)


def _image_half(model: Any, config: ClipConfig, model_config: ModelConfig, parts: tuple[str, ...]) -> ImageClip:
    """Load the weights whose names begin with one of ``parts``, and wrap the image tower."""
    quick_gelu = bool(model_config.get("quick_gelu", False))
    _, registered = _REGISTRY.get(config.model, (None, None))
    if config.pretrained == RANDOM:
        warnings.warn(f"{config.model} has random weights (pretrained: {RANDOM}): good for tests alone", stacklevel=3)
        weights = Weights(model.state_dict(), RANDOM)
    elif registered and config.pretrained in registered:
        weights = Weights(registered[config.pretrained](), f"{config.model} {config.pretrained}")
    else:
        weights = read_weights(config, quick_gelu, sorted(registered) if registered else None)
    load_weights(model, weights, config.model, parts)
    size = int(model_config["vision_cfg"].get("image_size", DEFAULT_IMAGE_SIZE))
    preprocessing = Preprocessing(size, tuple(weights.mean), tuple(weights.std))
    digest = fingerprint(model.visual.state_dict().items())
    return ImageClip(
        image_tower=image_tower(model.visual, model_config, preprocessing),
        logit_scale=math.exp(model.logit_scale.item()),
        identity=ClipIdentity(config.model, config.pretrained, quick_gelu, digest),
        preprocessing=preprocessing,
    )
