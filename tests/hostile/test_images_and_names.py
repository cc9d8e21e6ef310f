"""Images and class names, good ones and those that somebody made on purpose."""

import io
import struct
import zlib

import pytest
import world
from PIL import Image

from kdpl.classifier.sources import printable
from kdpl.data.decoding import open_image
from kdpl.data.splits import Splits
from kdpl.errors import DataError, visible


def png_with_100_megabytes_of_text():
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    png, text = file.getvalue(), b"zTXt" + b"k\0\0" + zlib.compress(bytes(100_000_000))
    return (
        png[:33]
        + struct.pack(">I", len(text) - 4)
        + text
        + struct.pack(">I", zlib.crc32(text))
        + png[33:]
    )


@pytest.mark.parametrize(
    "content",
    [
        png_with_100_megabytes_of_text,
        # formats that other programs would draw
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    ],
    ids=["PNG", "SVG", "EPS"],
)
def test_a_file_that_is_no_plain_image_is_named(content, tmp_path):
    (tmp_path / "x.png").write_bytes(content())
    with world.refused(DataError, r"x\.png cannot be read"):
        open_image(str(tmp_path / "x.png"))


@pytest.mark.parametrize(
    "name", ["\x1b[31mred", "two\nlines", "", "  ", "\u202egpj", "\ud800", "x" * 1001, "a\x00b"]
)
def test_data_with_a_class_name_that_cannot_be_shown_is_refused_before_training(name):
    with world.refused(DataError, "has a class name that "):
        Splits("here", ("cat", name), (), (), (), None, open_image)


def test_paths_and_errors_do_not_act_on_a_terminal():
    assert printable("a\x1b[2J\n\udcff.png") == "a\\x1b[2J\\n\\xff.png"
    assert str(DataError("a\x1b[2J \u202e")) == "a\\x1b[2J \\u202e"
    assert visible("né 日本") == "né 日本"
