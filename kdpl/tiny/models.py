"""Architectures and weights of the miniature CLIPs.

The models have CLIP's vocabulary of 49,408 tokens, so any class name can be encoded. Pretraining saw about a hundred of
them, and a weights file holds only the embeddings of these.
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


def _config(width: int, vision: dict[str, Any]) -> dict[str, Any]:
    """Return an open_clip config with 32-wide attention heads."""
    text = {"context_length": CONTEXT_LENGTH, "vocab_size": VOCAB_SIZE, "width": width, "layers": 2}
    text["heads"] = width // 32
    vision = {"image_size": IMAGE_SIZE, "head_width": 32, **vision}
    return {"embed_dim": width, "vision_cfg": vision, "text_cfg": text, "quick_gelu": False}


CONFIGS: Mapping[str, dict[str, Any]] = {
    "tiny-teacher": _config(128, {"width": 128, "layers": 4, "patch_size": 8}),
    "tiny-student": _config(64, {"width": 64, "layers": 2, "patch_size": 8}),
    "tiny-resnet": _config(64, {"width": 8, "layers": [1, 1, 1, 1]}),
}
"""The open_clip config of each miniature CLIP, by name."""


def weights_path(name: str) -> Path:
    """Return the weights file in the package of the model ``name``."""
    return WEIGHTS_FOLDER / f"{name.removeprefix('tiny-')}.safetensors"


def compact_config(name: str, vocab_size: int) -> dict[str, Any]:
    """Return the config of the model ``name`` with a vocabulary of ``vocab_size`` tokens, as used in pretraining."""
    config = CONFIGS[name]
    return {**config, "text_cfg": {**config["text_cfg"], "vocab_size": vocab_size}}


def save_compact(
    path: Path, state_dict: Mapping[str, Tensor], token_ids: Tensor, *, name: str, steps: int, seed: int
) -> None:
    """Write a model as float16 safetensors, atomically.

    Its token embedding has one row for each of the ``token_ids`` in CLIP's vocabulary, ascending, int64 [T]. Name,
    contrastive steps and seed go into the metadata.
    """
    tensors = {key: value.detach().half().contiguous() for key, value in state_dict.items()}
    # half precision would save two bytes and change every logit by up to 0.2 %
    tensors["logit_scale"] = state_dict["logit_scale"].detach().float()
    tensors[_IDS] = token_ids.int()
    about = {"format_version": FORMAT_VERSION, "model": name, "tag": TAG, "steps": steps, "seed": seed}
    metadata = {k: json.dumps(v) for k, v in {**about, "quick_gelu": CONFIGS[name]["quick_gelu"]}.items()}
    with atomic_path(path) as unfinished:
        save_file(tensors, unfinished, metadata=metadata)


def load_weights(name: str, path: Path | None = None) -> dict[str, Tensor]:
    """Load a complete float32 state dict for ``open_clip.CLIP`` with ``CONFIGS[name]``, by default from the package.

    Raises:
        WeightsError: The file is missing, damaged, or holds another model.
    """
    path = path or weights_path(name)
    remedy = f"run python -m kdpl.tiny.pretrain {name.removeprefix('tiny-')}, or install kdpl again"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise WeightsError(f"{path} cannot be read as weights of a miniature CLIP: {remedy}") from error
    if metadata.get("model") != name or metadata.get("format_version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path} holds the model {metadata.get('model')!r} in format {metadata.get('format_version')!r}, expected "
            f"{name!r} in format {FORMAT_VERSION}: {remedy}"
        )
    token_ids = tensors.pop(_IDS).long()
    state_dict = {key: value.float() for key, value in tensors.items()}
    state_dict[_EMBEDDING] = expand_embedding(state_dict[_EMBEDDING], token_ids)
    return state_dict


def expand_embedding(rows: Tensor, token_ids: Tensor, vocab_size: int = VOCAB_SIZE) -> Tensor:
    """Expand the trained token embeddings to the whole vocabulary.

    Unseen tokens are drawn from the mean and standard deviation of the trained rows. The tower has only seen embeddings
    from there; others, such as random initial ones, could dominate the words around them. Without noise, all unknown
    names of one length would have the same feature, and no tuning could separate them.

    Args:
        rows: Trained embeddings, float32 [T, W].
        token_ids: Their ids, int64 [T].
        vocab_size: V.

    Returns:
        A table, float32 [V, W], the same on every machine.
    """
    trained = rows.double().numpy()
    # numpy freezes the stream of RandomState, on which a teacher's fingerprint depends; torch does not
    noise = np.random.RandomState(_UNSEEN_SEED).standard_normal((vocab_size, trained.shape[1]))
    table = torch.from_numpy((trained.mean(axis=0) + trained.std(axis=0) * noise).astype(np.float32))
    table[token_ids] = rows
    return table
