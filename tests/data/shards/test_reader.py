import io
import tarfile

import pytest
from PIL import Image
from world import refused
from zoo import add

from kdpl.classifier.sources import read_items
from kdpl.data.decoding import Decoding
from kdpl.errors import DataError


def encoded(value, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 2 * value, 7)).save(file, kind)
    return file.getvalue()


def write_shard(path, members, mode="w", links=()):
    with tarfile.open(path, mode) as shard:
        for name, content in members.items():
            add(shard, name, content)
        for name, target in links:
            add(shard, name, kind=tarfile.SYMTYPE, link=target)
    return path


@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("TAR", "w")])
def test_images_of_a_shard_are_read_in_order_and_not_unpacked(ending, mode, tmp_path):
    members = {"b/2.png": encoded(2), "b/2.json": b"{}", "1.jpg": encoded(1, "JPEG")}
    members |= {"._1.jpg": b"x", "bad.png": b"no"}
    shard = write_shard(tmp_path / f"s.{ending}", members, mode, links=[("link.png", __file__)])
    items = list(read_items([str(shard)]))
    assert [item.name for item in items] == [
        f"{shard}/{n}" for n in ("b/2.png", "1.jpg", "bad.png")
    ]
    assert items[0].open(Decoding()).getpixel((0, 0)) == (2, 4, 7)
    items[1].open(Decoding())
    with refused(DataError, r"image .*s\.\S+/bad\.png cannot be read"):
        items[2].open(Decoding())
    assert list(tmp_path.iterdir()) == [shard]


@pytest.mark.parametrize("damage", [0, 100, 700, 1536 + 100, 1536 + 512 + 20, "garbled"])
def test_a_damaged_shard_gives_what_it_has_and_then_an_error(damage, tmp_path):
    # each member takes a header and two blocks of 512 bytes
    content = encoded(1)[:20] + bytes(600)
    shard = write_shard(tmp_path / "s.tar", {f"{i}.png": content for i in range(3)})
    content = shard.read_bytes()
    shard.write_bytes(
        content[:1536] + b"?" * 300 + content[1836:] if damage == "garbled" else content[:damage]
    )
    *images, error = read_items([str(shard)])
    assert len(images) == (1 if damage == "garbled" else damage // 1536)
    with refused(DataError, r"shard .*s\.tar is damaged \("):
        error.open(Decoding())
