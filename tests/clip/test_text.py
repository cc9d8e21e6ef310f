import pytest
from plain import relative_error

from kdpl.clip.towers.text import ArrangedTexts

TEXTS = {
    "one beginning": [f"a photo of a {name}." for name in ("sea horse", "crab", "sea snake")],
    "nothing in common": ["a sea horse.", "crab"],
    "the same": ["crab", "crab"],
    "an empty one": ["", "crab"],
    "nothing else": [""],
    "one within another": ["a crab", "a crab and a"],
    "one that is cut": [" ".join(["crab"] * 75), "crab"],
}


@pytest.mark.parametrize("name", ["test-teacher", "test-student-quickgelu"])
@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
def test_features_are_those_of_the_plain_tower_of_77_tokens(name, texts, clip_of, plain_of):
    clip = clip_of(name)
    features = clip.text_tower(ArrangedTexts.of(clip.tokenize(texts)))
    assert relative_error(features, plain_of(name).text_features(texts)) < 1e-5
