import numpy as np
import pytest
from PIL import Image
from runs import noise

from kdpl.data.decoding import open_image
from kdpl.errors import DataError


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_any_mode_opens_as_rgb(tmp_path, mode):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    noise(8, 6, mode).save(path)
    image = open_image(str(path))
    assert (image.mode, image.size) == ("RGB", (8, 6))


def test_pixels_survive(tmp_path):
    noise(8, 6).save(tmp_path / "image.png")
    assert open_image(str(tmp_path / "image.png")).tobytes() == noise(8, 6).tobytes()


def test_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"^image .*gone\.png does not exist: [^\n]*\.$"):
        open_image(str(tmp_path / "gone.png"))


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "gif", "tif", "webp"])
def test_truncated_image_is_named(tmp_path, extension):
    path = tmp_path / f"cut.{extension}"
    noise(40, 40).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(DataError, match=rf"^image .*cut\.{extension} cannot be read \([^\n]+\): [^\n]*\.$"):
        open_image(str(path))


def test_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"^image .*text\.jpg cannot be read"):
        open_image(str(tmp_path / "text.jpg"))


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path, extension):
    values = np.array([[0, 255, 256], [30_000, 40_000, 65_535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{extension}")
    opened = np.asarray(open_image(str(tmp_path / f"deep.{extension}")))
    assert opened.shape == (2, 3, 3)
    assert np.array_equal(opened, np.repeat((values // 256)[..., None], 3, axis=2))


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
    assert open_image(str(tmp_path / "moving.gif")).getpixel((3, 3)) == (255, 0, 0)


def test_transparency_is_dropped_and_the_colour_below_it_stays(tmp_path):
    Image.new("RGBA", (4, 4), (10, 200, 30, 0)).save(tmp_path / "clear.png")
    assert open_image(str(tmp_path / "clear.png")).getpixel((0, 0)) == (10, 200, 30)


def test_an_orientation_tag_is_not_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(8, 6).save(tmp_path / "turned.png", exif=exif)
    assert open_image(str(tmp_path / "turned.png")).tobytes() == noise(8, 6).tobytes()


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (60, 60)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"^image .*bomb\.png cannot be read \(Image size \(3600 pixels\)[^\n]*\.$"):
        open_image(str(tmp_path / "bomb.png"))


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"^image .*empty\.png cannot be read"):
        open_image(str(tmp_path / "empty.png"))
