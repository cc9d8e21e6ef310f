"""Archives, images and names that somebody made on purpose."""

import io
import struct
import tarfile
import zipfile
import zlib
from types import SimpleNamespace

import pytest
import world
from PIL import Image

from kdpl.data.archive import unpack
from kdpl.data.decoding import open_image
from kdpl.data.readers.shards import Member
from kdpl.data.splits import Splits
from kdpl.deploy.sources import printable, read_items
from kdpl.errors import DataError, visible


def tar_with(path, info, content=b""):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(content))
    return path


def member(name, size=0, **changes):
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in changes.items():
        setattr(info, key, value)
    return info


def refused(archive, folder, words):
    with world.refused(DataError, words):
        unpack(archive, folder, lambda _: False)
    assert not folder.exists()


def test_a_zip_bomb_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("kdpl.data.archive._ANY_UNPACKED", 2**20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.bin", bytes(2**23))
    refused(tmp_path / "x.zip", tmp_path / "out", "as no dataset does: do not use it")


def test_an_archive_that_the_disk_has_no_room_for_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    refused(tar_with(tmp_path / "x.tar", member("a", 100), bytes(100)), tmp_path / "out", "has 10 free: make room")


def test_a_file_that_runs_as_another_user_comes_out_as_an_ordinary_one(tmp_path):
    archive = tar_with(tmp_path / "x.tar", member("a", 1, mode=0o6777), b"1")
    unpack(archive, tmp_path / "out", lambda _: False)
    assert (tmp_path / "out" / "a").stat().st_mode & 0o7022 == 0


def test_a_header_that_announces_a_name_of_a_gigabyte_is_refused(tmp_path):
    header = member("n", 2**30, type=tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "x.tar").write_bytes(header + bytes(10_240))
    with pytest.raises(tarfile.ReadError, match="it has 1073741824 bytes"):
        Member.frombuf(header[:512], "utf-8", "strict")
    refused(tmp_path / "x.tar", tmp_path / "out", "is damaged or unsafe")
    (item,) = read_items([str(tmp_path / "x.tar")])
    assert "is damaged" in item.error


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_png_whose_text_unpacks_to_a_hundred_megabytes_is_named(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    png = file.getvalue()
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000)))
    (tmp_path / "x.png").write_bytes(png[:33] + bomb + png[33:])
    with pytest.raises(DataError, match=r"x\.png cannot be read"):
        open_image(str(tmp_path / "x.png"))


@pytest.mark.parametrize(
    "content",
    [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"],
    ids=["SVG", "EPS"],
)
def test_formats_that_other_programs_would_draw_are_no_images(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png cannot be read"):
        open_image(str(tmp_path / "x.png"))


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "", "  ", "\u202egpj", "\ud800", "x" * 1001, "a\x00b"])
def test_data_with_a_class_name_that_cannot_be_shown_is_refused_before_training(name):
    with world.refused(DataError, "has a class name that "):
        Splits("here", ("cat", name), (), (), (), None, open_image)


def test_paths_and_errors_do_not_act_on_a_terminal():
    assert printable("a\x1b[2J\n.png") == "a\\x1b[2J\\n.png"
    assert str(DataError("a\x1b[2J \u202e")) == "a\\x1b[2J \\u202e"
    assert visible("né 日本") == "né 日本"
