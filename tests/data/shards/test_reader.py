import tarfile

import pytest
from runs import noise
from world import refused
from zoo import add, encoded

from kdpl.classifier.sources import read_items
from kdpl.data.decoding import Decoding
from kdpl.errors import DataError


@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("TAR", "w")])
def test_images_of_a_shard_are_read_in_order_and_not_unpacked(ending, mode, tmp_path):
    path = tmp_path / f"s.{ending}"
    with tarfile.open(path, mode) as shard:
        for name, content in (("b/2.png", encoded(2)), ("b/2.json", b"{}"), ("1.jpg", encoded(1))):
            add(shard, name, content)
        add(shard, "._1.jpg", b"x")
        add(shard, "bad.png", b"no")
        add(shard, "link.png", kind=tarfile.SYMTYPE, link=__file__)
    items = list(read_items([str(path)]))
    assert [item.name for item in items] == [f"{path}/{n}" for n in ("b/2.png", "1.jpg", "bad.png")]
    for item, seed in zip(items, (2, 1), strict=False):
        assert item.open(Decoding()).tobytes() == noise(9, 7, seed=seed).tobytes()
    with refused(DataError, r"image .*s\.\S+/bad\.png cannot be read"):
        items[2].open(Decoding())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", [0, 100, 700, 1536 + 100, 1536 + 512 + 20, "garbled"])
def test_a_damaged_shard_gives_what_it_has_and_then_an_error(damage, tmp_path):
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as shard:
        for i in range(3):  # each takes a header and two blocks of 512 bytes
            add(shard, f"{i}.png", encoded(1)[:20] + bytes(600))
    content = path.read_bytes()
    path.write_bytes(
        content[:1536] + b"?" * 300 + content[1836:] if damage == "garbled" else content[:damage]
    )
    *images, error = read_items([str(path)])
    assert len(images) == (1 if damage == "garbled" else damage // 1536)
    with refused(DataError, r"shard .*s\.tar is damaged \("):
        error.open(Decoding())
