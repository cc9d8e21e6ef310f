"""Architectures and weights of the miniature CLIPs.

The models have CLIP's vocabulary of 49,408 tokens, so any class name can be encoded. Pretraining
saw about a hundred tokens, and a weights file holds only their embeddings.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

TAG = "glyphs"
"""Pretrained tag of all models."""

IMAGE_SIZE = 32
CONTEXT_LENGTH = 32
VOCAB_SIZE = 49_408

_EMBEDDING = "token_embedding.weight"
_IDS = "token_ids"


def _config(width: int, vision: dict[str, Any]) -> dict[str, Any]:
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
    return Path(__file__).parent / "weights" / f"{name.removeprefix('tiny-')}.safetensors"


@cache
def packaged_weights(name: str) -> dict[str, Tensor]:
    """Load the float32 state dict of an ``open_clip.CLIP`` of ``CONFIGS[name]`` from the package.

    All callers share its tensors.
    """
    tensors = load_file(weights_path(name))
    token_ids = tensors.pop(_IDS).long()
    state_dict = {key: value.float() for key, value in tensors.items()}

    # Expand the embeddings [T, W] of T tokens to the vocabulary, [V, W]. Unseen tokens are drawn
    # with the mean and standard deviation of the trained rows. The tower has only seen such
    # embeddings; others, such as random initial values, could dominate the words around them.
    # Without noise, all unknown names of one length would have the same feature, and no tuning
    # could separate them
    trained = state_dict[_EMBEDDING].double().numpy()
    # a teacher's fingerprint depends on this stream: numpy guarantees it, torch does not
    noise = np.random.RandomState(0).standard_normal((VOCAB_SIZE, trained.shape[1]))
    drawn = trained.mean(axis=0) + trained.std(axis=0) * noise
    table = torch.from_numpy(drawn.astype(np.float32))
    table[token_ids] = state_dict[_EMBEDDING]
    return state_dict | {_EMBEDDING: table}
