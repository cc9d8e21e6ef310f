"""Attributes in text prompts, beside a plain implementation that builds each sequence token by token."""

import open_clip
import pytest
import torch
import world
from plain import (
    END,
    START,
    backward,
    cross_entropy,
    layer_norm,
    normalized,
    relative_error,
    sgd,
)

from kdpl.clip import ClipConfig
from kdpl.errors import ConfigError
from kdpl.optim import OptimConfig
from kdpl.prompts import IndependentPrompts, PromptConfig
from kdpl.prompts.attributes import AttributePrompts
from kdpl.teacher import RegularizerWeights, TeacherPromptTuning

NONE = PromptConfig(depth=0)


def make(clip, attributes, depth=3, length=2, context=None):
    torch.manual_seed(0)
    method = AttributePrompts(
        PromptConfig(3, 2), PromptConfig(length, depth), context, clip, attributes
    )
    return world.disturbed(method, 0.5)


def plain_features(plain, names, attributes, soft, layers, words=()):
    """[start] then for each attribute its tokens and name, the context, fixed words, the class name, [.] and [end].

    Attention is causal, so padding is left out. Deeper layers replace the context, wherever it stands.
    """
    s, encode = plain.state, open_clip.SimpleTokenizer().encode
    embedding, rows = s["token_embedding.weight"], []
    for name in names:
        x = [embedding[START]]
        for tokens, attribute in zip(soft, attributes, strict=True):
            x += [*tokens, *embedding[encode(attribute)]]
        first = len(x)
        name_tokens = encode(f"{' '.join(words)} {name.replace('_', ' ')}.")
        x += [*layers[0], *embedding[name_tokens], embedding[END]]
        x = torch.stack(x) + s["positional_embedding"][: len(x)]
        for layer in range(plain.text_layers):
            if 1 <= layer < len(layers):
                kept = [x[i] for i in range(first)], [x[i] for i in range(first, len(x))]
                x = torch.stack([*kept[0], *layers[layer], *kept[1][len(layers[layer]) :]])
            x = plain._block(x, f"transformer.resblocks.{layer}", plain.text_heads, causal=True)
        rows.append(layer_norm(x[-1], s["ln_final.weight"], s["ln_final.bias"]))
    return torch.stack(rows) @ s["text_projection"]


def leaves_of(method):
    prompts = method.text_prompts
    layers = torch.cat([prompts.context[None], prompts.deep])
    parts = prompts.attribute_tokens, layers
    return [part.detach().double().requires_grad_() for part in parts]


@pytest.mark.parametrize(
    ("attributes", "depth", "length", "at_once"),
    [
        (["color"], 3, 2, 2),
        (["flavor", "preparation"], 4, 3, 2),
        (["season", "sea creature", "size"], 1, 2, 128),
        (["season", "sea creature", "size"], 4, 3, 128),
    ],
)
def test_features_and_gradients_are_the_plain_ones(
    attributes, depth, length, at_once, clip_of, plain_of
):
    clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
    method = make(clip, attributes, depth, length)
    soft, layers = leaves_of(method)
    texts = method.arrange(world.NAMES, clip.text_tower, clip.tokenize)

    features = method.encode_texts(clip.text_tower, texts, at_once)
    expected = normalized(plain_features(plain, world.NAMES, attributes, soft, layers))
    assert soft.shape[1] == length
    assert relative_error(features, expected) < 1e-5

    backward(features, expected)
    prompts = method.text_prompts
    assert relative_error(prompts.attribute_tokens.grad, soft.grad) < 1e-5
    assert relative_error(prompts.context.grad, layers.grad[0]) < 1e-5
    for layer in range(1, depth):
        assert relative_error(prompts.deep.grad[layer - 1], layers.grad[layer]) < 1e-5
    # a parameter that never gets a gradient stops DistributedDataParallel
    assert not [p for p in prompts.parameters() if p.requires_grad and p.grad is None]


def test_six_steps_end_with_the_plain_weights(tmp_path, plain_of):
    torch.manual_seed(0)
    teacher = TeacherPromptTuning(
        ClipConfig("test-teacher", world.TAG),
        context=None,
        vision_prompts=PromptConfig(3, 2),
        text_prompts=PromptConfig(2, 3),
        method=lambda *common: world.disturbed(AttributePrompts(*common, ["color", "size"]), 0.3),
        regularizers=RegularizerWeights(0, 0, 0),
        optim=OptimConfig(lr=0.02, warmup_lr=0.01),
    )
    domain, plain = world.TinyDomain(num_base=3), plain_of("test-teacher")
    tokens = teacher.prompts.tokens.detach().double().requires_grad_()
    prompts, names = teacher.prompts.text_prompts, domain.tuning_class_names
    learnt = prompts.attribute_tokens, prompts.context, prompts.deep
    soft, context, deep = (part.detach().double().requires_grad_() for part in learnt)

    def loss(images, labels):
        layers = torch.cat([context[None], deep])
        texts = normalized(plain_features(plain, names, ["color", "size"], soft, layers))
        features = normalized(plain.image_features(images, tokens))
        return cross_entropy(plain.scale * features @ texts.T, labels)

    world.fit(teacher, tmp_path, 2, domain=domain)
    batches = zip(domain.labeled.split(4), domain.labels.split(4), strict=True)
    sgd([tokens, soft, context, deep], (0.01, 0.02), batches, loss)
    trained = teacher.prompts.tokens, *learnt
    for part, expected in zip(trained, (tokens, soft, context, deep), strict=True):
        assert relative_error(part, expected) < 1e-5


def test_words_of_the_context_behind_its_learnt_tokens_stay(clip_of, plain_of):
    clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
    method = make(clip, ["color"], context="a photo of a")
    vectors = method.encode_names(world.NAMES, clip.text_tower, clip.tokenize)
    soft, layers = leaves_of(method)
    expected = plain_features(plain, world.NAMES, ["color"], soft, layers, ("of", "a"))
    assert relative_error(vectors, normalized(expected)) < 1e-5


def test_tokens_start_as_published(clip_of):
    clip = clip_of("test-teacher")
    torch.manual_seed(0)
    method = AttributePrompts(NONE, PromptConfig(40, 2), None, clip, ["color", "shape"])
    prompts = method.text_prompts
    assert prompts.attribute_tokens.shape == (2, 40, 40)
    assert prompts.attribute_tokens.std().item() == pytest.approx(0.01, rel=0.05)
    assert prompts.context.std().item() == pytest.approx(0.02, rel=0.05)


def test_images_are_those_of_independent_prompts(clip_of, images):
    clip = clip_of("test-teacher")
    method = make(clip, ["color"])
    tokens = {"vision_prompts.tokens": method.tokens.detach()}
    independent = IndependentPrompts.restore(PromptConfig(3, 2), NONE, "a", clip, tokens)
    expected = independent.encode_images(clip.image_tower, images)
    assert torch.equal(method.encode_images(clip.image_tower, images), expected)


@pytest.mark.parametrize(
    ("attributes", "text", "match"),
    [
        ([], (2, 1), r"attributes is \[\]"),
        (["color", " "], (2, 1), r"attributes is \['color', ' '\]"),
        (["color"], (2, 0), r"text_prompts\.depth 0"),
        (["color"], (0, 1), "length 0"),
    ],
)
def test_attributes_that_cannot_be_prompts_are_refused(attributes, text, match, clip_of):
    with world.refused(ConfigError, match):
        AttributePrompts(NONE, PromptConfig(*text), None, clip_of("test-teacher"), attributes)
