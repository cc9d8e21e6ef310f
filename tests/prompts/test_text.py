import pytest
import torch
import world
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from plain import backward, normalized, prompt_text, relative_error, token_ids

from kdpl.clip import PROMPTSRC_TEMPLATES
from kdpl.clip.towers.text import ArrangedTexts
from kdpl.errors import ConfigError
from kdpl.prompts import TextPrompts
from kdpl.prompts.text import ensemble_features, prompt_texts, tokenize_prompts

WORDS = "a photo of a"


def noisy_prompts(clip, depth, length=4):
    return world.disturbed(TextPrompts(length, depth, WORDS, clip.text_tower, clip.tokenize), 0.5)


def arranged(clip, texts):
    """Texts as a tower takes them."""
    return ArrangedTexts.of(clip.tokenize(texts))


@pytest.mark.parametrize(
    ("at_once", "depth", "length", "name"),
    [
        (128, 1, 4, "test-teacher"),
        (2, 2, 4, "test-teacher-quickgelu"),
        (1, 4, 4, "test-teacher"),
        (128, 4, 4, "test-teacher-quickgelu"),
        (3, 3, 2, "test-teacher"),
        (128, 3, 2, "test-teacher-quickgelu"),
    ],
)
def test_prompted_features_and_gradients_are_the_plain_ones(
    at_once, depth, length, name, clip_of, plain_of
):
    clip, plain = clip_of(name), plain_of(name)
    prompts = noisy_prompts(clip, depth, length)
    texts = [prompt_text(WORDS, n) for n in world.NAMES]
    assert prompt_texts(WORDS, length, world.NAMES) == texts
    ids = arranged(clip, texts)
    layers = torch.cat([prompts.context[None], prompts.deep]).detach().double().requires_grad_()

    features, expected = prompts(clip.text_tower, ids, at_once), plain.text_features(texts, layers)
    assert relative_error(features, expected) < 1e-5
    assert relative_error(features, plain.text_features(texts)) > 1e-3, "the prompts must matter"

    backward(features, expected)
    assert relative_error(prompts.context.grad, layers.grad[0]) < 1e-5
    for layer in range(1, depth):
        assert relative_error(prompts.deep.grad[layer - 1], layers.grad[layer]) < 1e-5
    # a parameter that never gets a gradient stops DistributedDataParallel
    assert not [p for p in prompts.parameters() if p.requires_grad and p.grad is None]
    if length < 4:
        other = arranged(clip, prompt_texts("a photo with no", length, world.NAMES))
        # the words that stay must matter
        assert relative_error(prompts(clip.text_tower, other), expected) > 1e-3


@pytest.mark.parametrize("length", [2, 4])
def test_the_context_starts_at_copies_of_the_first_words(length, clip_of, plain_of):
    clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
    prompts = TextPrompts(length, 1, WORDS, clip.text_tower, clip.tokenize)
    texts = ["a photo of a sea horse.", "a photo of a crab."]
    features = prompts(clip.text_tower, arranged(clip, texts))
    assert relative_error(features, plain.text_features(texts)) < 1e-5
    embeddings = world.weights("test-teacher")["token_embedding.weight"]
    assert torch.equal(prompts.context, embeddings[token_ids(WORDS)[1 : 1 + length]])
    with torch.no_grad():
        prompts.context += 1
    assert torch.equal(clip.text_tower.token_embedding.weight, embeddings)


def test_noise_starts_context_and_deep_prompts_small(clip_of):
    clip = clip_of("test-teacher")
    torch.manual_seed(0)
    prompts = TextPrompts(40, 4, None, clip.text_tower, clip.tokenize)
    assert prompts.context.shape == (40, 40)
    assert prompts.deep.shape == (3, 40, 40)
    for tokens in (prompts.context, prompts.deep):
        assert tokens.dtype == torch.float32
        assert tokens.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(tokens.mean().item()) < 0.002


def test_a_name_that_does_not_fit_is_refused(clip_of):
    clip = clip_of("test-teacher")
    texts = tokenize_prompts(clip.tokenize, prompt_texts(WORDS, 4, ["crab " * 69]), clip.text_tower)
    assert len(texts.prefix) + texts.rests[0].shape[1] == 76
    with world.refused(ConfigError, "'a photo of a crab crab .* 77 tokens"):
        tokenize_prompts(clip.tokenize, prompt_texts(WORDS, 4, ["crab " * 80]), clip.text_tower)


def test_the_ensemble_averages_features_before_normalising(clip_of, plain_of):
    clip, plain = clip_of("test-teacher"), plain_of("test-teacher")
    names = world.NAMES[:2]
    features = ensemble_features(clip.text_tower, clip.tokenize, names, PROMPTSRC_TEMPLATES)
    assert relative_error(features, plain.ensemble(names, OPENAI_IMAGENET_TEMPLATES[:60])) < 1e-5
    texts = [[t(name.replace("_", " ")) for t in PROMPTSRC_TEMPLATES] for name in names]
    later = [normalized(plain.text_features(named)).mean(dim=0) for named in texts]
    # the order must matter here
    assert relative_error(features, normalized(torch.stack(later))) > 1e-4
    assert not features.requires_grad
    assert len(PROMPTSRC_TEMPLATES) == 60


@pytest.mark.parametrize(
    ("length", "depth", "words", "match"),
    [
        (4, 5, None, "length 4 and depth 5"),
        (4, 2, "a photo of", "'a photo of' has 3 tokens"),
        (4, 2, "", "'' has 0 tokens"),
    ],
)
def test_sizes_and_words_that_do_not_fit_are_refused(length, depth, words, match, clip_of):
    clip = clip_of("test-teacher")
    with world.refused(ConfigError, match):
        TextPrompts(length, depth, words, clip.text_tower, clip.tokenize)


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_the_classes(clip_of):
    clip = clip_of("test-teacher")
    prompts = noisy_prompts(clip, 4)
    words = "sea", "river", "lake"
    names = [f"a photo of a {word} {letter}." for word in words for letter in "abcdefghij"]

    def kept(classes, at_once):
        """Bytes that autograd holds between forward and backward."""
        sizes = {}

        def count(tensor):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        texts = arranged(clip, names[:classes])
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            features = prompts(clip.text_tower, texts, at_once)
        return sum(sizes.values()) if features.requires_grad else 0

    assert kept(30, at_once=128) > 2 * kept(10, at_once=128)
    assert kept(30, at_once=9) < 1.1 * kept(10, at_once=9)
