import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain import prompt_text, relative_error
from texts import class_names

from kdpl.prompts import TextPrompts
from kdpl.prompts.text import prompt_texts, tokenize_prompts

WORDS = "a photo of a"
TEACHER = "test-teacher"

names = st.lists(class_names(), min_size=1, max_size=3)


@settings(max_examples=15)
@given(names, st.booleans())
@example(["<end_of_text>", "crab"], True)
@example(["a<start_of_text>", "&amp;"], True)
@example(["crab", "crab", "seahorse_of_the_deep"], False)
def test_ragged_names_have_the_features_of_77_tokens(clip_of, plain_of, names, prompted):
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
