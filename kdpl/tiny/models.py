"""The miniature CLIPs' architectures, and their weights: saved small, loaded as a complete CLIP.

The models take the standard CLIP vocabulary of 49,408 tokens, so that any class name can be typed, but their
pretraining met about a hundred of them. A weights file holds the embeddings of these alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdpl.errors import WeightsError
from kdpl.runtime.files import atomic_path

TAG = "glyphs"
"""The pretrained tag of all models."""

IMAGE_SIZE = 32
CONTEXT_LENGTH = 32
VOCAB_SIZE = 49_408

FORMAT_VERSION = 1
WEIGHTS_FOLDER = Path(__file__).parent / "weights"

_EMBEDDING = "token_embedding.weight"
_IDS = "token_ids"
_UNSEEN_SEED = 0


def _config(width: int, vision_layers: int) -> dict[str, Any]:
    """An open_clip model config with towers of one width and 32-wide attention heads."""
    return {
        "embed_dim": width,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "layers": vision_layers,
            "width": width,
            "head_width": 32,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": VOCAB_SIZE,
            "width": width,
            "heads": width // 32,
            "layers": 2,
        },
        "quick_gelu": False,
    }


def _resnet_config() -> dict[str, Any]:
    """The student with a ResNet of one block a stage in the place of its vision transformer."""
    vision = {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
    return {**_config(width=64, vision_layers=2), "vision_cfg": vision}


CONFIGS: Mapping[str, dict[str, Any]] = {
    "tiny-teacher": _config(width=128, vision_layers=4),
    "tiny-student": _config(width=64, vision_layers=2),
    "tiny-resnet": _resnet_config(),
}
"""The open_clip model config of each miniature CLIP, by its name."""


def weights_path(name: str) -> Path:
    """The file in the package that holds the weights of the model ``name``."""
    return WEIGHTS_FOLDER / f"{name.removeprefix('tiny-')}.safetensors"


def save_compact(
    path: Path, state_dict: Mapping[str, Tensor], token_ids: Tensor, *, name: str, steps: int, seed: int
) -> None:
    """Write a model of the compact vocabulary as float16 safetensors.

    The file appears whole or not at all.

    Args:
        path: the file to write.
        state_dict: weights of an ``open_clip.CLIP`` whose ``token_embedding`` has one row per entry of ``token_ids``.
        token_ids: ids in CLIP's standard vocabulary, ascending, int64 [T].
        name: the model's name, a key of `CONFIGS`.
        steps: contrastive steps that the weights were trained for.
        seed: the seed that they were trained with.
    """
    tensors = {key: value.detach().half().contiguous() for key, value in state_dict.items()}
    # One number: half precision would save two bytes and move every logit by up to 0.2 %.
    tensors["logit_scale"] = state_dict["logit_scale"].detach().float()
    tensors[_IDS] = token_ids.int()
    metadata = {
        "format_version": FORMAT_VERSION,
        "model": name,
        "tag": TAG,
        "quick_gelu": CONFIGS[name]["quick_gelu"],
        "steps": steps,
        "seed": seed,
    }
    with atomic_path(path) as unfinished:
        save_file(tensors, unfinished, metadata={key: json.dumps(value) for key, value in metadata.items()})


def read_metadata(path: Path) -> dict[str, Any]:
    """What a weights file says of itself: format_version, model, tag, quick_gelu, steps and seed.

    Raises:
        WeightsError: the file is missing or is not a miniature CLIP's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise _unreadable(path) from error


def load_weights(name: str, path: Path | None = None) -> dict[str, Tensor]:
    """The complete float32 state dict of a miniature CLIP, for ``open_clip.CLIP`` of ``CONFIGS[name]``.

    Args:
        name: a key of `CONFIGS`.
        path: a file that `save_compact` wrote; by default the one in the package.

    Raises:
        WeightsError: the file is missing, damaged, or holds another model.
    """
    path = path or weights_path(name)
    metadata = read_metadata(path)
    if metadata.get("model") != name or metadata.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path} holds the model {metadata.get('model')!r} in format {metadata.get('format_version')!r} where "
            f"{name!r} in format {FORMAT_VERSION} was expected: make it with "
            f"`python -m kdpl.tiny.pretrain {name.removeprefix('tiny-')}`."
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _unreadable(path) from error
    token_ids = tensors.pop(_IDS).long()
    state_dict = {key: value.float() for key, value in tensors.items()}
    state_dict[_EMBEDDING] = expand_embedding(state_dict[_EMBEDDING], token_ids)
    return state_dict


def expand_embedding(rows: Tensor, token_ids: Tensor, vocab_size: int = VOCAB_SIZE) -> Tensor:
    """Spread the trained token embeddings over the whole vocabulary.

    Tokens that pretraining never met are drawn around the mean of the trained rows, with the trained rows' spread.
    The mean, because the tower has only ever seen embeddings from there: a row from elsewhere, such as a random
    initial one, would be an input unlike any other and could drown the words around it. The spread, because with
    the bare mean all unknown names of one length would have one and the same feature, and no tuning of the context
    could ever part them.

    Args:
        rows: trained embeddings, float32 [T, W].
        token_ids: their ids, int64 [T].
        vocab_size: number V of rows of the whole table.

    Returns:
        The whole table, float32 [V, W], the same on every machine.
    """
    trained = rows.double().numpy()
    # RandomState and not torch: its stream is frozen by numpy's policy, and a teacher's fingerprint hangs on it.
    noise = np.random.RandomState(_UNSEEN_SEED).standard_normal((vocab_size, trained.shape[1]))
    table = torch.from_numpy((trained.mean(axis=0) + trained.std(axis=0) * noise).astype(np.float32))
    table[token_ids] = rows
    return table


def compact_config(name: str, vocab_size: int) -> dict[str, Any]:
    """The config of the model ``name`` for a vocabulary of ``vocab_size`` tokens, as pretraining uses it."""
    config = CONFIGS[name]
    return {**config, "text_cfg": {**config["text_cfg"], "vocab_size": vocab_size}}


def _unreadable(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} cannot be read as the weights of a miniature CLIP: install kdpl again, or make the file with "
        "`python -m kdpl.tiny.pretrain`."
    )
