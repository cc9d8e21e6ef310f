import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from kdpl.data.image import open_image, resize_and_crop, to_tensor
from kdpl.errors import DataError


def noise(width, height, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (31, 90), (20, 20), (9, 14), (32, 32)])
def test_evaluation_transform_is_torchvisions(width, height):
    image = noise(width, height)
    reference = v2.Compose(
        [
            v2.Resize(32, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(32),
            v2.PILToTensor(),
        ]
    )
    tensor = to_tensor(resize_and_crop(image, 32))
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (3, 32, 32)
    assert torch.equal(tensor, reference(image))


def test_evaluation_transform_cuts_the_middle_of_the_long_edge():
    image = Image.new("RGB", (30, 10))
    image.paste((255, 0, 0), (10, 0, 20, 10))
    assert to_tensor(resize_and_crop(image, 10))[0].eq(255).all()


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
