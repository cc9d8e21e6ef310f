import gzip
import pickle
import tarfile

import pytest
import world
from runs import noise
from zoo import add, encoded, write_shard

from kdpl.classifier.sources import read_items
from kdpl.data.shards import index as shard_index
from kdpl.data.shards.index import INDEX_FILE, index_shards
from kdpl.data.sources import find_unlabeled, open_source
from kdpl.errors import ConfigError, DataError


@pytest.fixture
def places(tmp_path):
    """Folders p/a and p/b of one image each, a list, and shards 000.tar to 002.tar of two images each."""
    for number, name in enumerate(("a/1.png", "b/2.png")):
        (tmp_path / "p" / name).parent.mkdir(parents=True)
        noise(9, 7, seed=90 + number).save(tmp_path / "p" / name)
    for number in range(3):
        write_shard(tmp_path / f"{number:03d}.tar", [2 * number, 2 * number + 1])
    (tmp_path / "list.txt").write_text(f"p/b/2.png\n\n000.tar\n{tmp_path}/p/a/1.png\n")
    return tmp_path


def short(found, folder):
    return [source.removeprefix(f"file://{folder}/").removeprefix(f"{folder}/") for source in found]


def pixels(source):
    return open_source(source).tobytes()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            ["{}/{{001..002}}.tar"],
            ["001.tar/0002.png", "001.tar/0003.png", "002.tar/0004.png", "002.tar/0005.png"],
        ),
        (["{}/list.txt"], ["p/b/2.png", "000.tar/0000.png", "000.tar/0001.png", "p/a/1.png"]),
        (
            ["{}/p/b", "{}/p", "{}/000.tar"],
            ["p/b/2.png", "p/a/1.png", "000.tar/0000.png", "000.tar/0001.png"],
        ),
    ],
)
def test_shards_among_files_are_read_in_their_order_each_image_once(places, given, expected):
    given = [each.format(places) for each in given]
    assert short(find_unlabeled(given if len(given) > 1 else given[0]), places) == expected


def test_an_image_in_a_shard_opens_also_after_it_has_travelled_to_another_process(places):
    source = find_unlabeled(str(places / "001.tar"))[1]
    travelled = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert pixels(travelled) == pixels(source) == noise(9, 7, seed=3).tobytes()


def test_what_lies_behind_a_url_is_listed_and_read_in_part(places, monkeypatch):
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe("/store/x/1.png", encoded(7))
    files.pipe("/store/x/.hidden.png", b"")
    files.pipe("/store/000.tar", (places / "000.tar").read_bytes())
    try:
        found = find_unlabeled(["memory://store/x", "memory://store/{000..000}.tar"])
        assert [pixels(each) for each in found] == [
            noise(9, 7, seed=s).tobytes() for s in (7, 0, 1)
        ]
        assert [each[-8:] for each in find_unlabeled("memory://store/*.tar")] == [
            "0000.png",
            "0001.png",
        ]
        with monkeypatch.context() as patched:
            patched.setattr(shard_index, "open_tar", None)
            assert [each[-8:] for each in find_unlabeled("memory://store/000.tar")] == [
                "0000.png",
                "0001.png",
            ]
        with world.refused(DataError, r"memory://store/gone\.tar does not exist"):
            find_unlabeled("memory://store/gone.tar")
    finally:
        files.rm("/store", recursive=True)


def test_images_behind_urls_are_listed_and_opened():
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe("/photos/x/1.png", encoded(7))
    files.pipe("/photos/x/.hidden.png", b"")
    try:
        (found,) = find_unlabeled("memory://photos/x")
        assert open_source(found).tobytes() == noise(9, 7, seed=7).tobytes()
        (same,) = find_unlabeled("memory://photos/*/*.png")
        assert same == found
        with world.refused(DataError, r"memory://photos/gone has no images"):
            find_unlabeled("memory://photos/gone")
    finally:
        files.rm("/photos", recursive=True)
    with world.refused(ConfigError, "nonsense://x cannot be opened"):
        find_unlabeled("nonsense://x")


def test_members_that_leave_the_folder_or_are_not_files_are_ignored(tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as shard:
        add(shard, "../up.png", encoded(1))
        add(shard, "/etc/root.png", encoded(1))
        add(shard, "link.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add(shard, "hard.png", kind=tarfile.LNKTYPE, link="good.png")
        add(shard, "device.png", kind=tarfile.CHRTYPE)
        add(shard, "folder.png", kind=tarfile.DIRTYPE)
        add(shard, ".hidden.png", encoded(1))
        add(shard, "good.png", encoded(2))
        # which no file of some systems may be named, but nothing is unpacked
        add(shard, "a:b?.png", encoded(3))
        add(shard, "c:\\d*.png", encoded(4))
    found = find_unlabeled(str(tmp_path / "evil.tar"))
    assert short(found, tmp_path) == [
        "evil.tar/good.png",
        "evil.tar/a:b?.png",
        "evil.tar/c:\\d*.png",
    ]
    assert [pixels(each) for each in found] == [
        noise(9, 7, seed=seed).tobytes() for seed in (2, 3, 4)
    ]
    assert [each.name for each in read_items([str(tmp_path / "evil.tar")])] == list(found)
    assert sorted(each.name for each in tmp_path.rglob("*")) == [INDEX_FILE, "evil.tar"], (
        "nothing is unpacked"
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gone.tar", None, "does not exist"),
        ("x.tar", lambda whole: whole[:700], "is damaged"),
        ("x.tar", gzip.compress, "is damaged"),
        ("x.tar.gz", gzip.compress, "is compressed"),
        ("x.tar", lambda _: bytes(10_240), "has no images"),
    ],
)
def test_a_shard_that_cannot_be_trained_on_is_one_sentence(tmp_path, name, change, message):
    path = tmp_path / name
    if change:
        path.write_bytes(change(write_shard(tmp_path / "whole.tar", [1, 2]).read_bytes()))
    with world.refused(DataError, message) as error:
        index_shards([str(path)])
    assert str(path) in str(error.value)


def test_a_shard_truncated_after_indexing_names_the_image(places):
    source = find_unlabeled(str(places / "000.tar"))[1]
    (places / "000.tar").write_bytes((places / "000.tar").read_bytes()[:1600])
    with world.refused(DataError, r"000\.tar ends within .*0001\.png"):
        open_source(source)
