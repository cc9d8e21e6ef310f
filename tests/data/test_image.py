import runpy
import warnings

import numpy as np
import pytest
import runs
import world
import zoo
from PIL import Image

from kdpl import DomainDataModule
from kdpl.data import decoding
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.decoding import PUBLISHED, Decoding, open_image
from kdpl.data.options import ReadingOptions
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.resizing import Resizing


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (20_000, 3)])
def test_odd_shapes_pass_the_evaluation_transform(size):
    tensor = to_tensor(resize_and_crop(Image.new("RGB", size, "teal"), Resizing(16)))
    assert tensor.shape == (3, 16, 16)
    assert tensor.float().mean(dim=(1, 2)).tolist() == [0, 128, 128]


@pytest.mark.parametrize("kind", zoo.GOOD)
def test_an_odd_image_opens_as_rgb_of_its_colours_without_a_warning(kind, tmp_path):
    name, make, size, place, colour = zoo.GOOD[kind]
    make(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = open_image(str(tmp_path / name))
    assert (image.mode, image.size) == ("RGB", size)
    assert image.getpixel(place) == colour


@pytest.mark.parametrize("kind", zoo.PUBLISHED)
def test_the_benchmarks_images_lose_their_transparency_and_are_not_turned(kind, tmp_path):
    name, make, _, place, _ = zoo.GOOD[kind]
    make(tmp_path / name)
    image = open_image(str(tmp_path / name), decoding=PUBLISHED)
    assert (image.size, image.getpixel(place)) == zoo.PUBLISHED[kind]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 90, 200)])
def test_transparent_pixels_are_mixed_with_the_background_and_opaque_ones_stay(mode, background):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (64, 64, 4), dtype=np.uint8)
    pixels[..., 3] *= draw.integers(0, 2, (64, 64), dtype=np.uint8)
    pixels[:32, :, 3] = 255
    image = Image.fromarray(pixels).convert(mode)
    if mode == "PA":  # for which Pillow before 12 makes all opaque
        image.putalpha(Image.fromarray(pixels[..., 3]))
    seen = np.asarray(image.convert("RGBA")).astype(float)
    alpha = seen[..., 3:] / 255
    mixed = np.asarray(Decoding(background).to_rgb(image)).astype(float)
    assert np.abs(mixed - (alpha * seen[..., :3] + (1 - alpha) * background)).max() < 1
    assert np.array_equal(mixed[:32], seen[:32, :, :3])
    assert (mixed[pixels[..., 3] == 0] == background).all()


DEEP = np.arange(2**16, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.ppm"])
def test_of_16_bits_the_upper_byte_is_taken(name, tmp_path):
    if name == "deep.ppm":  # which Pillow reads, but does not write before 11
        (tmp_path / name).write_bytes(b"P5 256 256 65535\n" + DEEP.astype(">u2").tobytes())
    else:
        Image.fromarray(DEEP).save(tmp_path / name)
    pixels = np.asarray(open_image(str(tmp_path / name)))
    assert np.array_equal(pixels, np.stack([DEEP >> 8] * 3, axis=-1))


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp", "gif", "bmp", "ppm", "jp2"])
def test_an_image_of_too_many_pixels_is_refused_and_a_large_one_opens(
    ending, tmp_path, monkeypatch
):
    path = str(tmp_path / f"scan.{ending}")
    runs.noise(150, 100).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # the import says which warnings are ignored
        fresh = runpy.run_path(decoding.__file__)["open_image"]
        # Pillow warns from this number on, and refuses twice as many
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
        assert fresh(path).size == (150, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7_000)
    with world.refused(DataError, r"cannot be read \(Image size \(15000 pixels\) exceeds limit"):
        open_image(path)


# where the pixels of an image lie in what is stored: EXIF 2.32, section 4.6.5
TURNS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize(
    ("orientation", "ending"),
    [*((orientation, "png") for orientation in TURNS), (6, "jpg"), (5, "webp"), (8, "tif")],
)
def test_an_image_is_turned_as_its_tag_says_once(orientation, ending, tmp_path):
    tagged, plain = (str(tmp_path / f"{name}.{ending}") for name in ("tagged", "plain"))
    runs.noise(9, 5).save(plain)
    runs.noise(9, 5).save(tagged, exif=zoo.tag(orientation))
    stored, image = np.asarray(open_image(plain, decoding=PUBLISHED)), open_image(tagged)
    assert np.array_equal(np.asarray(image), TURNS[orientation](stored))
    assert np.array_equal(np.asarray(Decoding().to_rgb(image)), np.asarray(image))
    with Image.open(tagged) as opened:
        assert np.array_equal(np.asarray(Decoding().to_rgb(opened)), np.asarray(image))
        # and the caller's image stays as it is
        assert np.array_equal(np.asarray(Decoding().to_rgb(opened)), np.asarray(image))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_tags_do_not_spoil_an_image(exif, tmp_path):
    runs.noise(9, 5).save(tmp_path / "a.png", exif=exif)
    assert open_image(str(tmp_path / "a.png")).tobytes() == runs.noise(9, 5).tobytes()


@pytest.mark.parametrize("background", ["white", [255, 255], [0, 0, 256], [0, 0, 0.5], 7])
def test_a_background_that_is_not_a_colour_is_refused(background):
    with world.refused(ConfigError, "background is .*, expected three numbers from 0 to 255"):
        DomainDataModule("folder", root="somewhere", reading=ReadingOptions(background=background))


@pytest.mark.parametrize("kind", zoo.BAD)
def test_a_bad_image_is_one_sentence_that_names_it_and_says_why(kind, tmp_path):
    name, make, reason = zoo.BAD[kind]
    make(tmp_path / name)
    with world.refused(DataError, reason) as error:
        open_image(str(tmp_path / name))
    assert str(error.value).startswith(f"image {tmp_path / name} ")
