import pytest
from runs import noise

from kdpl.data.sources import find_unlabeled


@pytest.fixture
def places(tmp_path):
    """Folders p/a and p/b of one image each, and a list of both."""
    for number, name in enumerate(("a/1.png", "b/2.png")):
        (tmp_path / "p" / name).parent.mkdir(parents=True)
        noise(9, 7, seed=90 + number).save(tmp_path / "p" / name)
    (tmp_path / "list.txt").write_text(f"p/b/2.png\n\n{tmp_path}/p/a/1.png\n")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["{}/p/**/*.png"], ["p/a/1.png", "p/b/2.png"]),
        (["{}/p/{{b,a}}"], ["p/b/2.png", "p/a/1.png"]),
        (["file://{}/p/b"], ["p/b/2.png"]),
        (["{}/list.txt"], ["p/b/2.png", "p/a/1.png"]),
        (["{}/p/b", "{}/p"], ["p/b/2.png", "p/a/1.png"]),
    ],
)
def test_places_of_every_kind_come_in_their_order_each_image_once(places, given, expected):
    given = [each.format(places) for each in given]
    found = find_unlabeled(given if len(given) > 1 else given[0])
    assert [source.removeprefix(f"{places}/") for source in found] == expected
