import os
import pickle

import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st

from kdpl import DomainDataModule
from kdpl.data import names as module
from kdpl.data.names import Names, ShardImage, places, unlisted
from kdpl.data.options import ReadingOptions
from kdpl.data.sampling import share_of
from kdpl.data.sources import find_unlabeled
from kdpl.runtime.resizing import Resizing

# any text that Python has, lone surrogates and empty names among it
paths = st.lists(
    st.text(st.characters(exclude_characters="\0") | st.just("/"), max_size=9), max_size=9
)


@given(paths, paths, st.integers(0, 9), st.integers(0, 9))
def test_names_are_those_of_a_list_however_they_are_cut_and_joined(first, second, start, end):
    both, plain = Names.joined([Names.of(iter(first)), Names.of(second)]), first + second
    assert list(both) == plain == [both[i] for i in range(len(both))]
    parts = [both[end:], both[:start], both.take(slice(None, None, -1))]
    assert list(Names.joined(parts)) == [*plain[end:], *plain[:start], *plain[::-1]]
    with pytest.raises(IndexError):
        both[len(both)]


def test_images_in_shards_keep_their_place_also_in_another_process():
    images = [ShardImage("a/1.tar", "x/1.png", 512, 10), "b.png"]
    images.append(ShardImage("2.tar", "é.png", 2**40, 2**33))
    for names in (Names.of(images), pickle.loads(pickle.dumps(Names.of(images)))):  # noqa: S301
        assert list(names) == images
        places = [(names[i].shard, names[i].offset, names[i].size) for i in (0, 2)]
        assert places == [("a/1.tar", 512, 10), ("2.tar", 2**40, 2**33)]


@pytest.fixture
def tree(tmp_path):
    """Folders of twelve and of three files, links to files and folders, and a link that leads nowhere."""
    for folder, count in (("many", 12), ("few", 3), ("elsewhere", 1)):
        runs.image_folder(tmp_path / folder, classes=("x",), images=count, splits=("train",))
    (tmp_path / "many/train/x/link.png").symlink_to(tmp_path / "elsewhere/train/x/0.png")
    (tmp_path / "few/train/x/link.png").symlink_to("0.png")
    (tmp_path / "few/train/x/gone.png").symlink_to("nothing.png")
    (tmp_path / "few/to_many").symlink_to(tmp_path / "many")
    return tmp_path


def test_places_are_the_real_paths_of_files(tree, monkeypatch):
    monkeypatch.chdir(tree)
    found = [*find_unlabeled(str(tree / "many")), "many/train/x/3.png", "not/there.png"]
    found += [f"few/{name}.png" for name in ("to_many/train/x/link", "train/x/0", "train/x/link")]
    found.append("few/train/x/gone.png")
    assert list(places(Names.of(found))) == [os.path.realpath(path) for path in found]
    shard = ShardImage("few/to_many/1.tar", "a/1.png", 512, 9)
    assert list(places(Names.of([shard]))) == [f"{os.path.realpath(tree)}/many/1.tar/a/1.png"]


@pytest.mark.parametrize("same_hash", [False, True])
def test_each_image_counts_once_and_the_first_name_stays(tree, monkeypatch, same_hash):
    if same_hash:
        monkeypatch.setattr(module, "hash", lambda _: 0, raising=False)
    given = [str(tree / name) for name in ("few", "many", "elsewhere", "few/train/x/1.png")]
    plain = {}
    for path in [name for each in given for name in find_unlabeled(each)]:
        plain.setdefault(os.path.realpath(path), path)
    assert list(find_unlabeled(given)) == list(plain.values())
    listed = [str(tree / "elsewhere/train/x/0.png"), f"{tree}/few/../many/train/x/5.png"]
    left = unlisted(Names.of(plain.values()), listed)
    gone = [name for name in plain.values() if name not in left]
    assert gone == [str(tree / f"few/to_many/train/x/{name}.png") for name in ("5", "link")]


def test_a_listing_takes_no_system_call_for_each_file(tree, monkeypatch):
    asked = []
    for name in ("lstat", "stat", "readlink"):
        ask = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path, *a, _ask=ask, **k: asked.append(path) or _ask(path, *a, **k)
        )
    assert len(find_unlabeled(str(tree / "many"))) == 13
    within = {path for path in map(str, asked) if path.startswith(f"{tree}/many/train/x/")}
    assert within == {f"{tree}/many/train/x/link.png"}


@pytest.mark.parametrize(
    "options", [{}, {"unlabeled": "many"}, {"unlabeled": "many", "unlabeled_share": 0.5}]
)
def test_training_holds_no_object_for_each_unlabelled_image(tree, monkeypatch, options):
    monkeypatch.chdir(tree)
    data = DomainDataModule(
        "folder", root="many", num_workers=0, reading=ReadingOptions(scan=False), **options
    )
    images = data.train_dataloader_for("unlabeled", Resizing(8)).dataset
    every = [f"many/train/x/{name}.png" for name in sorted([*map(str, range(12)), "link"])]
    if "unlabeled_share" in options:
        every = [every[index] for index in share_of(13, 0.5, seed=1)]
    assert list(images.sources) == every
    for value in runs.reachable(images).values():
        assert not isinstance(value, str) or value not in every
        assert not isinstance(value, (list, tuple, dict)) or len(value) < len(every)
