"""Image-text models of transformers with random weights, in folders as its ``save_pretrained`` writes them."""

from typing import NamedTuple

import pytest
import torch
from siglip import write_tokenizer

transformers = pytest.importorskip("transformers")

SIZE = 32
LAYERS = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = {**LAYERS, "image_size": SIZE, "patch_size": 8}
TEXT = {**LAYERS, "vocab_size": 32, "max_position_embeddings": 20, "pad_token_id": 1}
# SigLIP's tower reads its padding; the others pool at the end of a text, or hide the padding
READS_PADDING = ("siglip",)
# transformers 4 has no scaled_dot_product_attention for them
NEEDS_5 = ("altclip", "chinese_clip")
# the class of image processors that the publishers of a kind's models use; CLIP's for the other kinds
PROCESSORS = {
    "chinese_clip": "ChineseCLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "tipsv2": "Tipsv2ImageProcessor",
}
SQUARE = {"height": SIZE, "width": SIZE}
# without a crop
SQUASHED = ("siglip", "tipsv2")


class Written(NamedTuple):
    path: object
    model: object

    @property
    def address(self):
        return f"hf:{self.path}"


def write(path, kind):
    """Write a small model of a kind with random weights, a tokenizer and an image processor."""
    is_old = transformers.__version__.startswith("4.")
    if kind not in transformers.CONFIG_MAPPING or (is_old and kind in NEEDS_5):
        pytest.skip(f"transformers {transformers.__version__} has no such model with SDPA")
    width = {"siglip": "projection_size"}.get(kind, "projection_dim")
    dim = 24 if kind in ("tipsv2", "siglip") else 20
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    settings = transformers.AutoConfig.for_model(
        kind,
        text_config={**TEXT, width: dim, **ids},
        vision_config={**VISION, "projection_dim": dim},
        projection_dim=dim,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = transformers.AutoModel.from_config(settings).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    inputs = ["input_ids"] if kind in READS_PADDING else ["input_ids", "attention_mask"]
    write_tokenizer(path, model_input_names=inputs)
    processor_of(kind).save_pretrained(path)
    return Written(path, transformers.AutoModel.from_pretrained(path).eval())


def processor_of(kind, **changes):
    """Make an image processor of a kind's own class, with some of its fields changed."""
    sizes = {"size": SQUARE} if kind in SQUASHED else {"size": {"shortest_edge": 40}}
    sizes |= {} if kind in SQUASHED else {"crop_size": SQUARE}
    name = PROCESSORS.get(kind, "CLIPImageProcessor")
    if not hasattr(transformers, name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    return getattr(transformers, name)(**{**sizes, **changes})


def features(output):
    """Features that a model of transformers returned, of version 4 or later."""
    return (output if torch.is_tensor(output) else output.pooler_output).detach()
