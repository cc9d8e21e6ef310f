"""Near-copies: one picture saved anew is found, and other pictures are not."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.near_copies import TRANSFORMATIONS
from kdpl.__main__ import main
from kdpl.data.inspection import picture_of
from kdpl.data.near_copies import near_copies
from kdpl.data.survey import FoundImage, find, inspect_images, leave_out


def scene(seed, size=(240, 180)):
    """A picture of coloured shapes."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, (90, 120, 150))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, edge = np.add(rng.integers([*size, 60]), [0, 0, 10])
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + edge, y + edge), fill=tuple(rng.integers(256, size=3).tolist()))
    return image


def found(images, measured):
    pictures = [picture_of(image) for image in images]
    return [first for _, first in near_copies(pictures, bytes, measured)]


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_copy_is_found_and_other_pictures_are_not(name):
    originals, rng = [scene(seed) for seed in range(12)], np.random.default_rng(1)
    copies = [TRANSFORMATIONS[name](image, rng) for image in originals]
    assert found([*originals, *copies], 12) == [None] * 12 + [*range(12)]


def test_only_leading_images_are_originals_and_small_or_plain_ones_tell_nothing():
    image, plain = scene(0), Image.new("RGB", (100, 100), "white")
    assert found([plain, plain, image, image, image], 3) == [None, None, None, 2, 2]
    assert found([image, image], 0) == [None, None]
    small = image.resize((63, 63))
    assert found([small, small], 2) == [None, None]
    assert found([], 2) == []
    tiny = [scene(seed).resize((8, 8)) for seed in (0, 0)]
    for how in (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.NEAREST):
        assert found([image.resize((64, 64), how) for image in tiny], 2) == [None, None]


def test_more_images_than_a_block_are_compared_in_order(monkeypatch):
    monkeypatch.setattr("kdpl.data.near_copies._BLOCK", 3)
    images = [scene(seed) for seed in (0, 1, 2, 3, 1, 3, 0)]
    assert found(images, 2) == [None, None, None, None, 1, None, 0]


def test_init_leaves_near_copies_out_of_other_splits_and_groups_them_in_one(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            scene([*(split + name).encode()]).save(tmp_path / split / name / "0.png")
    scene([*b"traincat"]).resize((200, 150)).save(tmp_path / "train/dog/1.png")
    scene([*b"testcat"]).resize((200, 150)).save(tmp_path / "train/dog/2.png")
    scene([*b"small"]).resize((40, 40)).save(tmp_path / "train/dog/3.png")
    usable, left_out = leave_out(inspect_images(find(tmp_path), 1))
    copy, original = tmp_path / "train/dog/2.png", tmp_path / "test/cat/0.png"
    assert [image.problem for image in left_out] == [
        f"{copy} is a near-copy of {original} (test, of class cat)"
    ]
    groups = {image.path.removeprefix(f"{tmp_path}/"): image.group for image in usable}
    first = str(tmp_path / "train/cat/0.png")
    assert groups == {
        "train/cat/0.png": first,
        "train/dog/1.png": first,
        "train/dog/0.png": "",
        "train/dog/3.png": "",
        "test/cat/0.png": "",
        "test/dog/0.png": "",
    }
    small = str(tmp_path / "train/dog/3.png")
    assert [image.path for image in usable if not image.compared] == [small]


def test_init_counts_images_that_are_not_compared(tmp_path, capsys):
    for name, size in (("cat", (100, 100)), ("dog", (40, 40))):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(4):
            image = scene([*name.encode(), number]).resize(size)
            image.save(tmp_path / "in" / name / f"{number}.png")
    assert main(["init", str(tmp_path / "in"), f"--out={tmp_path / 'out'}", "--workers=1"]) == 0
    line = "not compared for near-copies, too small, enlarged or drawn: 4\n"
    assert line in capsys.readouterr().out


def test_an_image_keeps_its_group():
    images = [
        FoundImage("a", "cat", "train", digest="a", group="burst"),
        FoundImage("b", "cat", "train", digest="b", near="a"),
        FoundImage("c", "cat", "train", digest="c", near="a", group="other"),
    ]
    assert leave_out(images)[0] == [images[0], replace(images[1], group="burst"), images[2]]
