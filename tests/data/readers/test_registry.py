import pytest

from kdpl.data.readers.registry import build_reader
from kdpl.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "imagenet9",
            {},
            r"^dataset 'imagenet9' is unknown: choose one of caltech101, digits, .*, or give a Reader's class path$",
        ),
        ("folder", {"root": None}, r"^dataset 'folder' needs root: "),
        ("dtd", {"root": None}, r"^dataset 'dtd' needs root: set it to where the dataset lies$"),
        ("dtd", {"root": "data", "class_names": "a.json"}, r"^dataset 'dtd' takes no class_names: "),
        ("digits", {"root": "data"}, r"^dataset 'digits' takes no root: remove root: data$"),
        ("digits", {"unlabeled": "pool"}, r"^dataset 'digits' takes no unlabeled: "),
    ],
)
def test_dataset_and_options_must_go_together(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build_reader(name, **options).read()


def test_options_that_are_none_count_as_not_given():
    assert len(build_reader("digits", root=None, unlabeled=None, class_names=None).read().class_names) == 10
