"""Finding an image-text model of transformers, loading it, and splitting it into towers.

Code from a repository is never run, and weights are read only from safetensors.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kdpl.clip import Clip, ClipConfig, ImageClip, ImageTower, Preprocessing
from kdpl.clip.hugging_face.halves import HalfTower, ImageHalf, TextHalf
from kdpl.clip.loading import Source, from_transformers
from kdpl.clip.tokens import Tokenizer
from kdpl.clip.towers.building import ModelConfig
from kdpl.clip.towers.hugging_face_text import HuggingFaceTextTower
from kdpl.errors import ConfigError, WeightsError
from kdpl.runtime.resizing import Interpolation, ResizeMode

KINDS = ("aimv2", "altclip", "chinese_clip", "clip", "metaclip_2", "siglip", "tipsv2")
"""Model types with a text tower and a vision transformer for images of one size."""

PROCESSORS = (
    "ChineseCLIPImageProcessor",
    "CLIPImageProcessor",
    "SiglipImageProcessor",
    "Tipsv2ImageProcessor",
)
"""Classes of their image processors, whose fields describe all that they do."""

_INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # as Pillow counts

_ATTENTION = "sdpa"  # torch's, not the config's, as that may name a repository of kernels


def load_clip(config: ClipConfig) -> Clip:
    """Load a model, with the errors of ``kdpl.clip.load_clip``."""
    settings = _settings(config.model)
    with _reading(config.model, "tokenizer") as (library, path):
        tokenizer = library.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        tokenizer.padding_side = "right"
        # at most CLIP's length: BERTs have 512, and padding costs as much as words
        length = min(settings.text_config.max_position_embeddings, tokenizer.model_max_length, 77)
        options = {"padding": "max_length", "max_length": length}

        def encode(texts: list[str]) -> Any:
            return tokenizer(texts, truncation=True, return_tensors="pt", **options)

        tokenize = Tokenizer(lambda texts: cast(Tensor, encode(texts)["input_ids"]))
        start = tokenize.start
        encoded, padding, ends = encode(["a"]), None, 0
        if "attention_mask" in encoded:
            padding = tokenizer.pad_token_id
            ends = int(encoded["attention_mask"].sum() - (encoded["input_ids"] != padding).sum())
    model = _model(config, settings)
    tower = HuggingFaceTextTower(TextHalf(model, padding, ends), start, padding, ends)
    return _image_half(model, config, settings).with_text(tower, tokenize)


def load_image_clip(config: ClipConfig) -> ImageClip:
    """Load the image half of a model, with the errors of ``load_clip``."""
    settings = _settings(config.model)
    return _image_half(_model(config, settings), config, settings)


def build_image_tower(model_config: ModelConfig, preprocessing: Preprocessing) -> ImageTower:
    """Build an image tower from the image part of a config, without loading weights."""
    from transformers import CONFIG_MAPPING, AutoModel

    vision, width = {**model_config["vision_cfg"]}, model_config["embed_dim"]
    kind = vision.pop("hf")
    if kind not in KINDS:
        raise ValueError(f"kdpl builds no image tower of kind {kind!r}")
    text = {name: vision[name] for name in ("hidden_size", "num_attention_heads")}
    text |= {"num_hidden_layers": 0, "vocab_size": 8}
    settings = CONFIG_MAPPING[kind](vision_config=vision, text_config=text, projection_dim=width)
    model = AutoModel.from_config(settings, attn_implementation=_ATTENTION)
    return HalfTower(ImageHalf(model), preprocessing, model_config)


def _settings(model: str) -> Any:
    with _reading(model, "config") as (library, path):
        values, _ = library.PretrainedConfig.get_config_dict(path)
        kind = values.get("model_type")
        if kind in KINDS and kind in library.CONFIG_MAPPING:
            return library.CONFIG_MAPPING[kind].from_dict(values)
    raise WeightsError(
        f"{model} is of type {kind!r}, and code of its repository is never run: use an image-text "
        f"model of transformers of type {', '.join(KINDS)}, or a CLIP of open_clip"
    )


def _model(config: ClipConfig, settings: Any) -> Any:
    name = config.model
    if config.pretrained not in (None, name) or config.quick_gelu or config.image_size:
        raise ConfigError(
            f"{name} has fixed weights, activation and size of images: remove "
            "clip.pretrained, clip.quick_gelu and clip.image_size"
        )
    with _reading(name, "safetensors weights") as (library, path):
        options = {"attn_implementation": _ATTENTION, "use_safetensors": True, "config": settings}
        model, info = library.AutoModel.from_pretrained(path, output_loading_info=True, **options)
        if info["missing_keys"]:
            raise ValueError(f"tensor '{min(info['missing_keys'])}' is missing")
    return model.float()


def _image_half(model: Any, config: ClipConfig, settings: Any) -> ImageClip:
    # a forward pass tells the width of features, and whether the tower works
    visual, preprocessing = ImageHalf(model), _preprocessing(config)
    size = preprocessing.image_size
    with _reading(config.model, "image tower"), torch.no_grad():
        (feature,) = visual(torch.zeros(1, 3, size, size))
    vision = settings.vision_config.to_diff_dict() | {"image_size": size}
    vision = {k: v for k, v in vision.items() if isinstance(v, int | float) or k == "hidden_act"}
    image = {"embed_dim": len(feature), "vision_cfg": {"hf": settings.model_type, **vision}}
    scale = getattr(model, "logit_scale", None)
    factor = 1 / model.temperature.item() if scale is None else math.exp(scale.item())
    return ImageClip.of(HalfTower(visual, preprocessing, image), factor, config, quick_gelu=False)


def _preprocessing(config: ClipConfig) -> Preprocessing:
    """Read a model's preprocessing; settings in the config take precedence."""
    with _reading(config.model, "image processor") as (library, path):
        fields = library.AutoImageProcessor.from_pretrained(path, trust_remote_code=False).to_dict()
    size, edge, mode = _resizing(config.model, fields)

    # a pixel v in 0..255 becomes (v factor - mean) / std, and kdpl starts from v / 255
    factor = 255 * (fields["rescale_factor"] if fields.get("do_rescale") else 1)
    mean, std = (0.0,) * 3, (1.0,) * 3
    if fields.get("do_normalize"):
        mean, std = fields["image_mean"], fields["image_std"]
    with _reading(config.model, "image processor"):  # its numbers may be out of range
        return Preprocessing(
            image_size=edge,
            mean=tuple(config.mean or [value / factor for value in mean]),
            std=tuple(config.std or [value / factor for value in std]),
            resize_mode=config.resize_mode or mode,
            interpolation=_INTERPOLATIONS[fields["resample"]],
            crop_pct=crop_share(edge, size),
        )


def crop_share(edge: int, size: int) -> float:
    """Return a crop's share of an edge such that ``Resizing`` computes the same edge from it."""
    share = edge / size
    return share if int(edge / share) == size else math.nextafter(share, 0)


def _resizing(model: str, fields: Mapping[str, Any]) -> tuple[int, int, ResizeMode]:
    """Return an image processor's size before the crop, edge after it, and resize mode."""

    def refusal(field: str, expected: str) -> WeightsError:
        return WeightsError(
            f"the image processor of {model} has {field} {fields.get(field)}, expected {expected}: "
            "use another model, or correct its preprocessor_config.json"
        )

    is_cropped = fields.get("do_center_crop")
    if fields["image_processor_type"].removesuffix("Fast") not in PROCESSORS:  # of transformers 4
        raise refusal("image_processor_type", " or ".join(PROCESSORS))
    if not fields.get("do_resize"):
        raise refusal("do_resize", "true")
    if fields.get("resample") not in _INTERPOLATIONS:
        raise refusal("resample", "2 (bilinear) or 3 (bicubic)")
    if fields.get("do_pad"):
        raise refusal("do_pad", "false")
    mode: ResizeMode
    match fields.get("size"):
        case {"shortest_edge": int(size), **rest} if not rest:
            mode = "shortest"
        case {"height": int(size), "width": int(width), **rest} if width == size and not rest:
            mode = "squash"
        case _:
            raise refusal("size", "a shortest_edge alone, or a height and an equal width")
    match fields.get("crop_size") if is_cropped else fields["size"]:
        case {"height": int(edge), "width": int(width)} if width == edge <= 2 * size <= 4 * edge:
            return size, edge, mode
    if not is_cropped:
        raise refusal("do_center_crop", "true, as its size is that of the shortest_edge")
    raise refusal("crop_size", f"a height and an equal width, {size} / 2 to 2 * {size}")


@contextmanager
def _reading(model: str, kind: str) -> Iterator[tuple[Any, str]]:
    source = Path(model.partition(":")[2]).expanduser().as_posix()
    with from_transformers(model, kind, source, "hf:"):
        import transformers

        yield transformers, source


SOURCE = Source(load_clip, load_image_clip, build_image_tower)
"""Of the addresses ``hf:…``."""
