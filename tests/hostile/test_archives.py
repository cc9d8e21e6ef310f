"""Archives, images and class names, good ones and those that somebody made on purpose."""

import io
import stat
import struct
import tarfile
import zipfile
import zlib
from contextlib import suppress

import pytest
import world
from PIL import Image
from zoo import add

from kdpl.benchmark.download import unpack
from kdpl.classifier.sources import printable
from kdpl.data.decoding import open_image
from kdpl.data.splits import Splits
from kdpl.errors import DataError, visible

SPECIAL = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)


def packed(path, members, special=()):
    """An archive of contents by name, and in a tar of pairs of name and another kind."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
            for name, content in members.items():
                add(archive, name, content)
            for name, kind in special:
                add(archive, name, kind=kind, link="/etc/passwd")
    return path


def unpacked(path):
    out = path.parent / "in/out"
    unpack(path, out, lambda name: name == "dtd")
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("kind", "members", "kept"),
    [
        # the folder of the archive is left out, and what a Mac adds
        ("tar.gz", {"dtd/a/1": b"one", "dtd/2": b"two"}, {"a/1": b"one", "2": b"two"}),
        ("zip", {"dtd/1": b"1", "__MACOSX/dtd/._1": b"x", "dtd/.DS_Store": b"x"}, {"1": b"1"}),
        ("zip", {"dtd/1": b"1", "more/2": b"2"}, {"dtd/1": b"1", "more/2": b"2"}),
    ],
)
def test_an_archive_becomes_the_files_of_its_dataset(kind, members, kept, tmp_path):
    assert unpacked(packed(tmp_path / f"x.{kind}", members)) == kept


@pytest.mark.parametrize("name", ["/etc/x", "dtd/../../x", "..\\x"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_nothing_is_written_outside_of_the_folder(tmp_path, name, kind):
    path = packed(tmp_path / f"bad.{kind}", {"dtd/fine.jpg": b"1", name: b"2"})
    with suppress(DataError):
        unpacked(path)
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, "in"}
    assert [entry.name for entry in (tmp_path / "in").iterdir()] == ["out"]


@pytest.mark.parametrize("kind", SPECIAL)
def test_devices_and_links_that_lead_outside_are_refused(tmp_path, kind):
    with world.refused(DataError, "is damaged or unsafe"):
        unpacked(packed(tmp_path / "bad.tar", {"dtd/fine.jpg": b"1"}, [("dtd/l", kind)]))
    assert not list((tmp_path / "in/out").iterdir())


def test_a_link_in_a_zip_becomes_a_file(tmp_path):
    link = zipfile.ZipInfo("l")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    assert unpacked(packed(tmp_path / "bad.zip", {link: "/etc/passwd"})) == {"l": b"/etc/passwd"}
    assert not (tmp_path / "in/out/l").is_symlink()


def test_a_damaged_archive_is_named(tmp_path):
    path = packed(tmp_path / "bad.zip", {"dtd/1.jpg": b"0123456789"})
    flipped = bytearray(path.read_bytes())
    flipped[45] ^= 1
    path.write_bytes(flipped)
    with world.refused(DataError, r"^archive .*bad\.zip is damaged or unsafe \("):
        unpacked(path)


def png_with_100_megabytes_of_text():
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    png, text = file.getvalue(), b"zTXt" + b"k\0\0" + zlib.compress(bytes(100_000_000))
    framed = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return png[:33] + framed + png[33:]


def test_a_file_that_is_no_plain_image_is_named(tmp_path):
    # other programs would draw the second
    for content in (png_with_100_megabytes_of_text(), b"%!PS-Adobe-3.0 EPSF-3.0\n%%EndComments\n"):
        (tmp_path / "x.png").write_bytes(content)
        with world.refused(DataError, r"x\.png cannot be read"):
            open_image(str(tmp_path / "x.png"))


@pytest.mark.parametrize("name", ["\x1b[31mred", "two\nlines", "x" * 1001])
def test_data_with_a_class_name_that_cannot_be_shown_is_refused_before_training(name):
    with world.refused(DataError, "has a class name that "):
        Splits("here", ("cat", name), (), (), (), None, open_image)


def test_paths_and_errors_do_not_act_on_a_terminal():
    assert printable("a\x1b[2J\n\udcff.png") == "a\\x1b[2J\\n\\xff.png"
    assert str(DataError("a\x1b[2J \u2028")) == "a\\x1b[2J \\u2028"
    assert visible("né 日本") == "né 日本"
