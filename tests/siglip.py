"""A miniature of SigLIP's kind in open_clip's layout: a tokenizer of its own, no causal mask, squashed images."""

import json
from typing import NamedTuple

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SIZE = 32
WORDS = "a photo of the sea horse crab blue whale zero one two three four five six seven eight nine"

_VISION = {"image_size": SIZE, "layers": 3, "width": 48, "head_width": 16, "patch_size": 8, "pool_type": "avg"}
_TEXT = {
    "context_length": 16,
    "vocab_size": 32,
    "width": 32,
    "heads": 2,
    "layers": 2,
    "no_causal_mask": True,
    "pool_type": "last",
    "proj_bias": True,
    "hf_tokenizer_name": "tokenizer",
    "tokenizer_kwargs": {"clean": "canonicalize"},
}
CONFIG = {
    "embed_dim": 24,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {**_VISION, "final_ln_after_pool": True, "no_ln_pre": True},
    "text_cfg": _TEXT,
}
PREPROCESSING = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


class Folder(NamedTuple):
    """Where it lies, and open_clip's model of it."""

    path: object
    model: object


def write_siglip(path, **text):
    """Write config, tokenizer and random weights; with other settings of the text tower if some are given."""
    path.mkdir(parents=True)
    config = {**CONFIG, "text_cfg": {**_TEXT, **text}}
    about = {"model_cfg": config, "preprocess_cfg": PREPROCESSING}
    (path / "open_clip_config.json").write_text(json.dumps(about))
    _write_tokenizer(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"}).eval()
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    return Folder(path, model)


def _write_tokenizer(path):
    ids = {word: number for number, word in enumerate(["<unk>", "</s>", *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(ids, "<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))
    # as SigLIP's, texts are padded with their end
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "</s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(about))
