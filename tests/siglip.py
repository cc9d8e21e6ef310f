"""A miniature of SigLIP's kind in open_clip's layout: a tokenizer of its own, no causal mask, squashed images."""

import json
from typing import NamedTuple

import open_clip
import pytest
import torch
from safetensors.torch import save_file

SIZE = 32
WORDS = "a photo of the sea horse crab blue whale zero one two three four five six seven eight nine"

_VISION = {
    "image_size": SIZE,
    "layers": 3,
    "width": 48,
    "head_width": 16,
    "patch_size": 8,
    "pool_type": "avg",
    "final_ln_after_pool": True,
    "no_ln_pre": True,
}
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
    "vision_cfg": _VISION,
    "text_cfg": _TEXT,
}
PREPROCESSING = {
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


class Folder(NamedTuple):
    """Where it lies, and open_clip's model of it."""

    path: object
    model: object


BERT = {
    "vocab_size": 32,
    "max_position_embeddings": 16,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
"""Settings of a small text tower of Hugging Face."""


def write_with_bert(path, vision=None, **text):
    """Write a CLIP whose text tower is a BERT by its name on the hub, with all that it needs in the folder.

    ``text`` are some settings of the text tower.
    """
    pytest.importorskip("transformers").BertConfig(**BERT).save_pretrained(path)
    named = {
        "hf_model_name": "somebody/bert",
        "hf_pooler_type": "cls_pooler",
        "hf_proj_type": "mlp",
    }
    built = {"hf_model_name": str(path), "hf_model_pretrained": False}
    return write_siglip(path, vision, built, **{**named, **text})


def write_siglip(path, vision=None, built=None, **text):
    """Write config, tokenizer and random weights.

    ``vision`` takes the place of the image tower's settings, and ``text`` are some of the text tower's; the weights are
    those of a model with the settings in ``built`` in its text tower.
    """
    pytest.importorskip("transformers")
    path.mkdir(parents=True, exist_ok=True)
    config = {**CONFIG, "vision_cfg": vision or _VISION, "text_cfg": {**_TEXT, **text}}
    about = {"model_cfg": config, "preprocess_cfg": PREPROCESSING}
    (path / "open_clip_config.json").write_text(json.dumps(about))
    write_tokenizer(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        parts = {**config, "text_cfg": {**config["text_cfg"], **(built or {})}}
        del parts["custom_text"]
        model = open_clip.CustomTextCLIP(**parts).eval()
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    return Folder(path, model)


def write_tokenizer(
    path, special=("<unk>", "</s>"), template="$A </s>", unknown="<unk>", padding="</s>", **settings
):
    """Write a tokenizer of whole words, as transformers reads it, by default one as SigLIP's.

    Its vocabulary begins with the ``special`` tokens, which stand in texts as the ``template`` says; ``settings`` go into
    its config.
    """
    # of the extra transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate([*special, *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    numbered = [(token, number) for number, token in enumerate(special)]
    tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=numbered)
    tokenizer.save(str(path / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": padding}
    about |= {"eos_token": "</s>"} if "</s>" in special else {}
    (path / "tokenizer_config.json").write_text(json.dumps({**about, **settings}))
