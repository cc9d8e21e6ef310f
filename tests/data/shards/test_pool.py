import gzip
import tarfile

import pytest
import runs
import torch
import world
from runs import noise
from zoo import add, encoded, write_shard

from kdpl.classifier.sources import read_items
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.shards.index import INDEX_FILE, index_shards
from kdpl.data.sources import find_unlabeled, open_source
from kdpl.errors import DataError
from kdpl.runtime.resizing import Resizing


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
    return [source.removeprefix(f"{folder}/") for source in found]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["{}/p/**/*.png"], "p/a/1.png p/b/2.png"),
        (["{}/p/{{b,a}}"], "p/b/2.png p/a/1.png"),
        (
            ["{}/00{{1..2}}.tar"],
            "001.tar/0002.png 001.tar/0003.png 002.tar/0004.png 002.tar/0005.png",
        ),
        (["{}/list.txt"], "p/b/2.png 000.tar/0000.png 000.tar/0001.png p/a/1.png"),
        (["{}/p/b", "{}/p", "{}/000.tar"], "p/b/2.png p/a/1.png 000.tar/0000.png 000.tar/0001.png"),
    ],
)
def test_files_and_shards_are_read_in_their_order_each_image_once(places, given, expected):
    given = [place.format(places) for place in given]
    found = find_unlabeled(given if len(given) > 1 else given[0])
    assert short(found, places) == expected.split()


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
        f"evil.tar/{n}" for n in ("good.png", "a:b?.png", "c:\\d*.png")
    ]
    pixels = [open_source(name).tobytes() for name in found]
    assert pixels == [noise(9, 7, seed=s).tobytes() for s in (2, 3, 4)]
    assert [item.name for item in read_items([str(tmp_path / "evil.tar")])] == list(found)
    # nothing is unpacked
    assert sorted(path.name for path in tmp_path.rglob("*")) == [INDEX_FILE, "evil.tar"]


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


def test_an_epoch_has_each_image_of_the_shards_once(places):
    runs.image_folder(places / "data", classes=("a",), images=1, splits=("train",))
    options = {"unlabeled": f"{places}/*.tar", "augmentation": "none", "batch_size": 2}
    data = runs.in_folder(places / "data", **options)
    loader = data.train_dataloader_for("unlabeled", Resizing(7))
    seen = [pair for batch in loader for pair in zip(batch.images, batch.indices, strict=True)]
    for image, index in seen:
        plain = open_source(loader.dataset.sources[int(index)])
        assert torch.equal(image, to_tensor(resize_and_crop(plain, Resizing(7))))
    # a batch of one image, of the seven with that of the folder, is left out
    assert len({int(index) for _, index in seen}) == len(seen) == 6
