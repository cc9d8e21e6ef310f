import pytest
import torch
import world
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from plain import prompt_text, relative_error, token_ids
from texts import class_names

from kdpl.errors import ConfigError
from kdpl.prompts import TextPrompts, VisionPrompts
from kdpl.prompts.text import prompt_texts, tokenize_prompts

WORDS = "a photo of a"
TEACHER = "test-teacher"
TOKENS = 77

names = st.lists(class_names(), min_size=1, max_size=3)


@settings(max_examples=30)
@given(names, st.booleans())
@example(["<end_of_text>", "crab"], True)
@example(["a<start_of_text>", "&amp;"], True)
@example(["crab", "crab", "seahorse_of_the_deep"], False)
def test_a_ragged_row_of_names_has_the_features_of_77_tokens_each(clip_of, plain_of, names, prompted):
    clip, plain = clip_of(TEACHER), plain_of(TEACHER)
    plain_texts = [prompt_text(WORDS, name) for name in names]
    texts = tokenize_prompts(clip.tokenize, prompt_texts(WORDS, 4, names), clip.text_tower)
    if not prompted:
        actual, expected = clip.text_tower(texts), plain.text_features(plain_texts)
    else:
        torch.manual_seed(0)
        prompts = TextPrompts(3, 2, WORDS, clip.text_tower, clip.tokenize)
        layers = torch.cat([prompts.context[None], prompts.deep]).detach().double()
        actual, expected = prompts(clip.text_tower, texts), plain.text_features(plain_texts, layers)
    assert relative_error(actual, expected) < 1e-5


@given(st.lists(class_names(max_size=30), min_size=1, max_size=4))
def test_arranged_texts_are_the_tokens_up_to_the_end_in_their_places(clip_of, names):
    clip = clip_of(TEACHER)
    plain = [token_ids(prompt_text(WORDS, name)).tolist() for name in names]
    assume(all(len(ids) == TOKENS and ids[-1] == 0 for ids in plain))
    texts = tokenize_prompts(clip.tokenize, prompt_texts(WORDS, 4, names), clip.text_tower)
    placed = {}
    for places, rests in zip(texts.places, texts.rests, strict=True):
        for place, rest in zip(places.tolist(), rests.tolist(), strict=True):
            assert place not in placed
            placed[place] = [*texts.prefix.tolist(), *rest]
    end = max(plain[0])
    assert [placed[i] for i in range(len(names))] == [ids[: ids.index(end) + 1] for ids in plain]


@given(st.text("ab ", min_size=60, max_size=400).map(str.strip).filter(bool))
def test_a_name_fits_or_is_refused_by_its_beginning(clip_of, name):
    clip = clip_of(TEACHER)
    fits = len(token_ids(prompt_text(WORDS, name), 0)) < TOKENS
    texts = prompt_texts(WORDS, 4, [name])
    if fits:
        assert len(tokenize_prompts(clip.tokenize, texts, clip.text_tower).rests) == 1
    else:
        with pytest.raises(ConfigError, match="shorten the class name") as error:
            tokenize_prompts(clip.tokenize, texts, clip.text_tower)
        assert world.one_sentence(error)


@given(st.integers(-1, 6), st.integers(-1, 6), st.integers(1, 3))
def test_visual_prompts_have_the_shape_asked_for_or_are_refused(clip_of, length, depth, images):
    tower = clip_of(TEACHER).image_tower
    if length < 1 or not 1 <= depth <= len(tower.blocks):
        with pytest.raises(ConfigError, match=f"length {length} and depth {depth} do not fit"):
            VisionPrompts(length, depth, tower)
        return
    prompts = VisionPrompts(length, depth, tower)
    assert prompts.tokens.shape == (depth, length, tower.width)
    features = prompts(tower, torch.zeros(images, 3, 32, 32, dtype=torch.uint8))
    assert features.shape == (images, tower.embed_dim)
    assert features.isfinite().all()


@given(st.integers(-1, 6), st.integers(-1, 6), st.sampled_from([None, WORDS]), names)
def test_text_prompts_have_the_shape_asked_for_or_are_refused(clip_of, length, depth, words, names):
    clip = clip_of(TEACHER)
    tower = clip.text_tower
    if length < 1 or not 1 <= depth <= len(tower.blocks) or (words is not None and length > 4):
        with pytest.raises(ConfigError):
            TextPrompts(length, depth, words, tower, clip.tokenize)
        return
    prompts = TextPrompts(length, depth, words, tower, clip.tokenize)
    assert prompts.context.shape == (length, tower.width)
    assert prompts.deep.shape == (depth - 1, length, tower.width)
    texts = tokenize_prompts(clip.tokenize, prompt_texts(words, length, names), tower)
    features = prompts(tower, texts)
    assert features.shape == (len(names), clip.image_tower.embed_dim)
    assert features.isfinite().all()
