"""Text towers of transformers, which take a learnt context at their input, against a BERT computed step by step."""

import open_clip
import pytest
import torch
import world
from plain import backward, relative_error
from siglip import write_tokenizer, write_with_bert
from torch.nn import functional as F

from kdpl.clip import ClipConfig, load_clip
from kdpl.clip.towers.hugging_face_text import HuggingFaceTextTower
from kdpl.prompts import TextPrompts
from kdpl.prompts.text import tokenize_prompts

NAMES = ["sea horse", "crab", "blue whale of the sea", "zero"]
POOLERS = {"mean_pooler": "linear", "cls_pooler": "mlp"}

pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=POOLERS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / request.param
    text = {"hf_pooler_type": request.param, "hf_proj_type": POOLERS[request.param]}
    written = write_with_bert(path, **text)
    # a class token, a separator, and padding with an id of its own
    special = "[PAD]", "[CLS]", "[SEP]", "[UNK]"
    write_tokenizer(path, special, "[CLS] $A [SEP]", unknown="[UNK]", padding="[PAD]")
    return written


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(ClipConfig(f"local-dir:{folder.path}"))


def linear(module, x):
    return x @ module.weight.double().T + (0 if module.bias is None else module.bias.double())


def layer_norm(module, x):
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + module.eps).sqrt()
    return scaled * module.weight.double() + module.bias.double()


def plain_features(text, ids, context, start):
    """Encode texts one by one, without padding: ids [N, L] with a context [n, W] from ``start`` on."""
    bert, heads = text.transformer, text.config.num_attention_heads
    embed = bert.embeddings
    features = []
    for row in ids:
        row = row[row != text.config.pad_token_id]
        words = embed.word_embeddings.weight.double()[row]
        words = torch.cat([words[:start], context, words[start + len(context) :]])
        positions = embed.position_embeddings.weight.double()[: len(row)]
        kind = embed.token_type_embeddings.weight.double()[0]
        x = layer_norm(embed.LayerNorm, words + positions + kind)
        for layer in bert.encoder.layer:
            maps, output = layer.attention.self, layer.attention.output
            split = [linear(m, x).chunk(heads, dim=1) for m in (maps.query, maps.key, maps.value)]
            parts = [
                (q @ k.T / q.shape[1] ** 0.5).softmax(dim=1) @ v
                for q, k, v in zip(*split, strict=True)
            ]
            x = layer_norm(output.LayerNorm, x + linear(output.dense, torch.cat(parts, dim=1)))
            hidden = linear(layer.intermediate.dense, x)
            hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
            x = layer_norm(layer.output.LayerNorm, x + linear(layer.output.dense, hidden))
        pooled = x.mean(dim=0) if bert.pooler is None else linear(bert.pooler.dense, x[0]).tanh()
        if isinstance(text.proj, torch.nn.Linear):
            features.append(linear(text.proj, pooled))
        else:
            features.append(linear(text.proj[2], F.gelu(linear(text.proj[0], pooled))))
    return torch.stack(features)


@pytest.mark.parametrize("at_once", [128, 3])
def test_a_context_and_its_gradient_are_the_plain_ones(folder, clip, at_once):
    assert not [*clip.text_tower.cast_weights()], "no weight is rounded"
    prompts = world.disturbed(TextPrompts(3, 1, "a photo of", clip.text_tower, clip.tokenize), 0.5)
    context = prompts.context.detach().double().requires_grad_()
    texts = [f"a photo of the {name}" for name in NAMES]
    ids = clip.tokenize(texts)
    assert (ids == 0).any(), "padding must be hidden"

    arranged = tokenize_prompts(clip.tokenize, texts, clip.text_tower)
    features = prompts(clip.text_tower, arranged, at_once)
    expected = plain_features(folder.model.text, ids, context, start=1)
    assert relative_error(features, expected) < 1e-5
    assert relative_error(features, clip.text_tower(arranged)) > 1e-3, "the prompts must matter"
    backward(features, expected)
    assert relative_error(prompts.context.grad, context.grad) < 1e-5


SIZE = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 32}
ENCODERS = {
    "roberta": SIZE,
    "xlm-roberta": SIZE,
    "mt5": {"num_layers": 2, "d_model": 24, "d_ff": 32, "d_kv": 12, "num_heads": 2},
    "m2m_100": {"encoder_layers": 2, "d_model": 24, "encoder_ffn_dim": 32, "decoder_layers": 1},
}
"""Further encoders that open_clip knows, with few layers."""


def encoder_of(kind, folder):
    """open_clip's module of a small encoder with random weights."""
    from transformers import AutoConfig

    heads = {"num_attention_heads": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    settings = {"vocab_size": 32, "max_position_embeddings": 40, **heads, **ENCODERS[kind]}
    AutoConfig.for_model(kind, **settings).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.hf_model.HFTextEncoder(
            str(folder), 16, pretrained=False, pooler_type="mean_pooler", proj_type="linear"
        )


@pytest.mark.parametrize("kind", ENCODERS)
def test_embeddings_of_words_as_a_context_change_nothing_in_any_kind_of_encoder(kind, tmp_path):
    text = encoder_of(kind, tmp_path)
    padding = text.config.pad_token_id
    ids = torch.full((3, 20), padding)
    for row, length in zip(ids, (6, 9, 12), strict=True):
        row[:length] = torch.arange(5, 5 + length)
    tower = HuggingFaceTextTower(text, 1, padding)
    texts = tower.arrange(ids)
    assert texts.rests[0].shape == (3, 12), "the padding after all texts is left out"
    context = tower.token_embedding(ids[0, 1:4]).detach()
    assert relative_error(tower(texts, context), text(ids)) < 1e-5
    assert relative_error(tower(texts, context.flip(0)), text(ids)) > 1e-4
