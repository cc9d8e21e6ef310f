import pytest
import torch
import world
from plain import backward, relative_error

from kdpl.clip.text import ArrangedTexts

LONG = [" ".join(["crab"] * 75), "crab"]
TEXTS = ["a photo of a sea horse.", "a photo of a crab.", "a photo of a blue whale.", "a photo of a sea snake."]


def arranged(clip, texts):
    return ArrangedTexts.of(clip.tokenize(texts))


@pytest.mark.parametrize("name", world.CLIPS)
@pytest.mark.parametrize(
    "texts", [TEXTS, ["a sea horse.", "crab"], ["crab", "crab"], ["", "crab"], [""], ["a crab", "a crab and a"], LONG]
)
def test_features_are_those_of_the_plain_tower_of_77_tokens(name, texts, clip_of, plain_of):
    clip = clip_of(name)
    assert relative_error(clip.text_tower(arranged(clip, texts)), plain_of(name).text_features(texts)) < 1e-5


def learnt(clip, depth):
    draw = torch.Generator().manual_seed(depth)
    width = clip.text_tower.width
    context = torch.randn(4, width, generator=draw).requires_grad_()
    return context, torch.randn(depth - 1, 4, width, generator=draw).requires_grad_()


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 128])
def test_a_bound_on_the_classes_changes_neither_features_nor_gradients(at_once, clip_of, plain_of):
    clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
    context, deep = learnt(clip, 4)
    features = clip.text_tower(arranged(clip, TEXTS), context, deep, at_once)
    layers = torch.cat([context[None], deep]).detach().double().requires_grad_()
    expected = plain.text_features(TEXTS, layers)
    assert relative_error(features, expected) < 1e-5
    backward(features, expected)
    assert relative_error(context.grad, layers.grad[0]) < 1e-5
    assert relative_error(deep.grad, layers.grad[1:]) < 1e-5


def kept_for_the_backward_pass(tower, texts, context, deep, at_once):
    """Bytes that autograd holds between forward and backward."""
    kept = {}

    def count(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        features = tower(texts, context, deep, at_once)
    return sum(kept.values()) if features.requires_grad else 0


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_classes(clip_of):
    clip = clip_of("test-teacher")
    names = [f"a photo of a {one} {other}." for one in ("sea", "river", "lake") for other in "abcdefghij"]
    prompts = learnt(clip, 4)
    few, many = arranged(clip, names[:10]), arranged(clip, names)
    bounded = [kept_for_the_backward_pass(clip.text_tower, t, *prompts, at_once=9) for t in (few, many)]
    unbounded = [kept_for_the_backward_pass(clip.text_tower, t, *prompts, at_once=128) for t in (few, many)]
    assert unbounded[1] > 2 * unbounded[0]
    assert bounded[1] < 1.1 * bounded[0]
