"""Finding an image-text model of transformers, loading it, and taking it apart into towers.

Code of a repository is never run, and weights are read from safetensors alone.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kdpl.clip import Clip, ClipConfig, ClipIdentity, ImageClip, ImageTower, Preprocessing
from kdpl.clip.families import ModelConfig
from kdpl.clip.loading import Source, fingerprint, from_transformers, register_source
from kdpl.clip.tokens import Tokenizer
from kdpl.errors import ConfigError, WeightsError
from kdpl.families.hugging_face_text import HuggingFaceTextTower
from kdpl.hf_models.halves import ImageHalf, TextHalf

KINDS = ("aimv2", "altclip", "chinese_clip", "clip", "metaclip_2", "siglip", "tipsv2")
"""Model types that have a text tower and a vision transformer for images of one size."""

_ATTENTION = "sdpa"  # torch's, whatever a config says: it may name a repository of kernels


def register() -> None:
    """Register the addresses ``hf:…``, as an entry point."""
    register_source("hf", Source(load_clip, load_image_clip, build_image_tower))


def load_clip(config: ClipConfig) -> Clip:
    """Load a model, with the errors of ``kdpl.clip.load_clip``."""
    settings = _settings(config.model)
    with _reading(config.model, "tokenizer") as (library, place):
        tokenizer = library.AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        tokenizer.padding_side = "right"
        # CLIP's length at most: BERTs have 512, and padding costs as much as words
        length = min(settings.text_config.max_position_embeddings, tokenizer.model_max_length, 77)
        options = {"padding": "max_length", "max_length": length}

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
    from transformers import CONFIG_MAPPING, AutoModel

    vision, width = {**model_config["vision_cfg"]}, model_config["embed_dim"]
    kind = vision.pop("hf")
    if kind not in KINDS:
        raise ValueError(f"kdpl builds no image tower of kind {kind!r}")
    # the smallest text tower beside it
    text = {name: vision[name] for name in ("hidden_size", "num_attention_heads")}
    text |= {"num_hidden_layers": 0, "vocab_size": 8}
    settings = CONFIG_MAPPING[kind](vision_config=vision, text_config=text, projection_dim=width)
    model = AutoModel.from_config(settings, attn_implementation=_ATTENTION)
    return ImageTower(ImageHalf(model), preprocessing, model_config)


def _settings(model: str) -> Any:
    """Read the config of a model, or raise a WeightsError if kdpl cannot use it."""
    with _reading(model, "config") as (library, place):
        values, _ = library.PretrainedConfig.get_config_dict(place)
        kind = values.get("model_type")
        if kind in KINDS and kind in library.CONFIG_MAPPING:
            return library.CONFIG_MAPPING[kind].from_dict(values)
    raise WeightsError(
        f"{model} is of type {kind!r}, and code of its repository is never run: use an image-text "
        f"model of transformers of type {', '.join(KINDS)}, or a CLIP of open_clip"
    )


def _model(config: ClipConfig, settings: Any) -> Any:
    """Load the whole model in float32."""
    name = config.model
    if config.pretrained not in (None, name) or config.quick_gelu or config.image_size:
        raise ConfigError(
            f"{name} has weights, an activation and a size of images of its own: remove "
            "clip.pretrained, clip.quick_gelu and clip.image_size"
        )
    with _reading(name, "safetensors weights") as (library, place):
        options = {"attn_implementation": _ATTENTION, "use_safetensors": True, "config": settings}
        model, about = library.AutoModel.from_pretrained(place, output_loading_info=True, **options)
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
        identity=ClipIdentity(config.model, config.model, False, digest),
        preprocessing=preprocessing,
    )


def _preprocessing(config: ClipConfig) -> Preprocessing:
    """Read how a model's images are prepared; what the config sets wins."""
    with _reading(config.model, "image processor") as (library, place):
        about = library.AutoImageProcessor.from_pretrained(place, trust_remote_code=False).to_dict()
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
def _reading(model: str, kind: str) -> Iterator[tuple[Any, str]]:
    """Give transformers, and a model's folder or repository, for a block that reads a part."""
    place = Path(model.partition(":")[2]).expanduser().as_posix()
    with from_transformers(model, kind, place, "hf:"):
        import transformers

        yield transformers, place
