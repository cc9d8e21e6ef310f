import pytest
import world
from plain import relative_error

from kdpl.clip.towers.text import ArrangedTexts

LONG = [" ".join(["crab"] * 75), "crab"]
TEXTS = [
    "a photo of a sea horse.",
    "a photo of a crab.",
    "a photo of a blue whale.",
    "a photo of a sea snake.",
]


@pytest.mark.parametrize("name", world.CLIPS)
@pytest.mark.parametrize(
    "texts",
    [
        TEXTS,
        ["a sea horse.", "crab"],
        ["crab", "crab"],
        ["", "crab"],
        [""],
        ["a crab", "a crab and a"],
        LONG,
    ],
)
def test_features_are_those_of_the_plain_tower_of_77_tokens(name, texts, clip_of, plain_of):
    clip = clip_of(name)
    features = clip.text_tower(ArrangedTexts.of(clip.tokenize(texts)))
    assert relative_error(features, plain_of(name).text_features(texts)) < 1e-5
