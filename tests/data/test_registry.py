import pytest

from kdpl.data.registry import read_dataset
from kdpl.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("imagenet9", {}, r"^dataset 'imagenet9' is unknown: choose one of digits, folder\.$"),
        ("folder", {"root": None}, r"^dataset 'folder' needs root: "),
        ("digits", {"root": "data"}, r"^dataset 'digits' takes no root: remove root: data\.$"),
        ("digits", {"unlabeled": "pool"}, r"^dataset 'digits' takes no unlabeled: "),
    ],
)
def test_dataset_and_options_must_go_together(name, options, message):
    with pytest.raises(ConfigError, match=message):
        read_dataset(name, **options)


def test_options_that_are_none_count_as_not_given():
    assert len(read_dataset("digits", root=None, unlabeled=None, class_names=None).class_names) == 10
