"""Finding an image-text model of transformers, loading it, and taking it apart into towers."""

import json
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kdpl.clip.families import ModelConfig
from kdpl.clip.hugging_face_text import HuggingFaceTextTower
from kdpl.clip.identity import RANDOM, ClipConfig, ClipIdentity, Preprocessing
from kdpl.clip.image import ImageTower
from kdpl.clip.loading import Clip, ImageClip, Source, fingerprint, register_source
from kdpl.clip.tokens import Tokenizer
from kdpl.errors import ConfigError, KdplError, WeightsError, reason
from kdpl.hf_models.halves import ImageHalf, TextHalf
from kdpl.runtime.network import WITHOUT_NETWORK, hub_or_cache

KINDS = ("aimv2", "altclip", "chinese_clip", "clip", "metaclip_2", "siglip", "tipsv2")
"""Model types that have a text tower and a vision transformer for images of one size."""

_CONTEXT_LENGTH = 77  # at most, as CLIP's: BERTs have 512, and padding costs as much as words


def register() -> None:
    """Register the addresses ``hf:…``, as an entry point."""
    register_source("hf", Source(load_clip, load_image_clip, build_image_tower))


def load_clip(config: ClipConfig) -> Clip:
    """Load a model, with the errors of ``kdpl.clip.load_clip``."""
    settings = _settings(config.model)
    with _reading(config.model, "tokenizer") as place:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        tokenizer.padding_side = "right"
        length = min(settings.text_config.max_position_embeddings, tokenizer.model_max_length)
        options = {"padding": "max_length", "max_length": min(length, _CONTEXT_LENGTH)}

        def encode(texts: list[str]) -> Any:
            return tokenizer(texts, truncation=True, return_tensors="pt", **options)

        tokenize = Tokenizer(lambda texts: cast(Tensor, encode(texts)["input_ids"]))
        start = tokenize.start
        one, padding, ends = encode(["a"]), None, 0
        if "attention_mask" in one:
            padding = tokenizer.pad_token_id
            ends = int(one["attention_mask"].sum() - (one["input_ids"] != padding).sum())
    model = _model(config, settings)
    tower = HuggingFaceTextTower(TextHalf(model, padding, ends), start)
    digest = fingerprint(tower.state_dict().items())
    image = _image_half(model, config, settings)
    return Clip(**vars(image), text_tower=tower, tokenize=tokenize, text_fingerprint=digest)


def load_image_clip(config: ClipConfig) -> ImageClip:
    """Load the image half of a model, with the errors of ``load_clip``."""
    settings = _settings(config.model)
    return _image_half(_model(config, settings), config, settings)


def build_image_tower(model_config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Build an image tower from its part of a config, with weights still to be loaded."""
    vision = {**model_config["vision_cfg"]}
    kind = vision.pop("hf")
    if kind not in KINDS or any("attn_implementation" in name for name in vision):
        raise ValueError(f"kdpl builds no image tower of kind {kind!r}")
    with _reading(f"hf:{kind}", "image tower"):
        from transformers import CONFIG_MAPPING, AutoModel

        # the smallest text tower beside it
        text = {name: vision[name] for name in ("hidden_size", "num_attention_heads")}
        text |= {"num_hidden_layers": 0, "vocab_size": 8}
        size = model_config["embed_dim"]
        settings = CONFIG_MAPPING[kind](vision_config=vision, text_config=text, projection_dim=size)
        visual = ImageHalf(AutoModel.from_config(settings))
    return ImageTower(visual, preprocessing, model_config)


def _settings(model: str) -> Any:
    """Read the config of a model, or raise a WeightsError if kdpl cannot use it."""
    with _reading(model, "config") as place:
        from transformers import CONFIG_MAPPING, PretrainedConfig

        values, _ = PretrainedConfig.get_config_dict(place)
        kind = values.get("model_type")
        foreign = re.search(r'attn_implementation"\s*:\s*"[^"]*/', json.dumps(values))
        if kind in KINDS and kind in CONFIG_MAPPING and not foreign:
            return CONFIG_MAPPING[kind].from_dict(values)
        needs_code = foreign or ("auto_map" in values and kind not in CONFIG_MAPPING)
    why = "needs code from a repository, which is never run" if needs_code else f"is a {kind!r}"
    raise WeightsError(
        f"{model} {why}: use an image-text model of one of the types {', '.join(KINDS)}, or a CLIP "
        "of open_clip"
    )


def _model(config: ClipConfig, settings: Any) -> Any:
    """Load the whole model in float32, with its own or random weights."""
    name, tag = config.model, config.pretrained
    if tag not in (None, name, RANDOM):
        raise ConfigError(f"{name} has its own weights, not {tag!r}: remove clip.pretrained")
    if config.quick_gelu or config.image_size is not None:
        raise ConfigError(
            f"{name} has an activation and a size of images of its own: remove clip.quick_gelu and "
            "clip.image_size"
        )
    with _reading(name, "safetensors weights") as place, torch.random.fork_rng(devices=[]):
        from transformers import AutoModel

        if tag == RANDOM:
            warnings.warn(f"{name} has random weights: good for tests alone", stacklevel=4)
            torch.manual_seed(0)
            return AutoModel.from_config(settings).float()
        model, about = AutoModel.from_pretrained(
            place, config=settings, use_safetensors=True, output_loading_info=True
        )
        if about["missing_keys"]:
            raise ValueError(f"tensor '{min(about['missing_keys'])}' is missing")
        return model.float()


def _image_half(model: Any, config: ClipConfig, settings: Any) -> ImageClip:
    visual, preprocessing = ImageHalf(model), _preprocessing(config)
    size = preprocessing.image_size
    with _reading(config.model, "image tower"), torch.no_grad():
        (feature,) = visual(torch.zeros(1, 3, size, size))
    vision = settings.vision_config.to_diff_dict() | {"image_size": size}
    vision = {k: v for k, v in vision.items() if isinstance(v, int | float) or k == "hidden_act"}
    image = {"embed_dim": len(feature), "vision_cfg": {"hf": settings.model_type, **vision}}
    scale = getattr(model, "logit_scale", None)
    digest = fingerprint(visual.state_dict().items())
    return ImageClip(
        image_tower=ImageTower(visual, preprocessing, image),
        logit_scale=1 / model.temperature.item() if scale is None else math.exp(scale.item()),
        identity=ClipIdentity(config.model, config.pretrained or config.model, False, digest),
        preprocessing=preprocessing,
    )


def _preprocessing(config: ClipConfig) -> Preprocessing:
    """Read how a model's images are prepared; what the config sets wins."""
    with _reading(config.model, "image processor") as place:
        from transformers import AutoImageProcessor

        about = AutoImageProcessor.from_pretrained(place, trust_remote_code=False).to_dict()
        size = about["size"]
        resized = size.get("shortest_edge") or size["height"]
        edge = about["crop_size"]["height"] if about.get("do_center_crop") else resized
        return Preprocessing(
            image_size=edge,
            mean=tuple(config.mean or about["image_mean"]),
            std=tuple(config.std or about["image_std"]),
            resize_mode=config.resize_mode or ("shortest" if "shortest_edge" in size else "squash"),
            interpolation="bilinear" if about["resample"] == 2 else "bicubic",  # as pillow counts
            crop_pct=edge / resized,
        )


@contextmanager
def _reading(model: str, what: str) -> Iterator[str]:
    """Give a model's folder or repository, and say in one sentence what transformers could not."""
    place = model.partition(":")[2]
    folder = Path(place).expanduser()
    try:
        from transformers import logging
    except ImportError as error:
        raise WeightsError(
            f"{model} needs the package transformers: pip install 'kdpl[transformers]'"
        ) from error
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        with nullcontext() if folder.is_dir() else hub_or_cache():
            yield str(folder) if folder.is_dir() else place
    except KdplError:
        raise
    except Exception as error:  # whatever the hub client, transformers or a file's parser raises
        raise WeightsError(
            f"cannot load the {what} of {model} ({reason(error)}): fetch the repository where "
            f"there is a network, and give its folder as hf:PATH{WITHOUT_NETWORK}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
