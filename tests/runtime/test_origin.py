"""What a file was made from, compared with what it would be made from now."""

import pytest
import world

from kdpl.data.augmentation import RandomResizedCrop
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.origin import as_json, difference, digest, flatten, require_same

BEFORE = {"seed": 1, "target": {"rounds": 15, "views": [4, 16]}, "images": digest(["a", "b"])}


def test_what_is_the_same_has_no_difference_whatever_its_order_and_kind_of_sequence():
    now = {"images": digest("ab"), "target": {"views": (4, 16), "rounds": 15}, "seed": 1}
    assert difference(BEFORE, now) is None
    require_same("the file", BEFORE, now, "remove it")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 2, "target": {}}, "seed is 1 there and 2 here"),
        ({"target": {"rounds": 5, "views": [4, 16]}}, "target.rounds is 15 there and 5 here"),
        ({"target": {"rounds": 15}}, r"target.views is \[4, 16\] there and None here"),
        ({"images": digest(["b", "a"])}, r"images is [0-9a-f]{32} there and [0-9a-f]{32} here"),
        ({"labels": "all"}, "labels is None there and all here"),
        ({"seed": "9" * 1000}, f"seed is 1 there and {'9' * 200} here"),
    ],
)
def test_the_first_difference_is_named_in_one_sentence_with_the_remedy(change, words):
    now = {**BEFORE, **change}
    with world.refused(ConfigError, rf"^the file was made from something else \({words}\): remove"):
        require_same("the file", BEFORE, now, "remove it")
    with world.refused(DataError, r"\): keep the seed$"):
        require_same("it", {"seed": 0}, {"seed": 1}, "x", {"seed": "keep the seed"}, DataError)


def test_what_does_not_say_is_refused():
    with world.refused(ConfigError, r"made from something else \(it does not say what\): remove"):
        require_same("the file", None, BEFORE, "remove it")


def test_a_digest_tells_where_parts_end_and_what_comes_first():
    lists = (["ab", "c"], ["a", "bc"], ["abc"], ["a", "b", "c"], ["c", "ab"], ["ab", "c", ""], [])
    assert len({digest(each) for each in lists}) == len(lists)
    assert digest(["\udcff", b"x"]) == digest([b"\xff", "x"])


def test_settings_of_objects_are_compared_without_their_addresses():
    class Plain:
        """An object whose repr is its address."""

    described = [as_json({"of": Plain(), **vars(RandomResizedCrop())}) for _ in range(2)]
    assert described[0] == described[1]
    assert described[0]["scale"] == [0.08, 1.0]
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "d": [1]}
