import numpy as np
import pytest
from PIL import Image
from runs import noise

from kdpl.data.decoding import open_image
from kdpl.errors import DataError


def test_pixels_survive(tmp_path):
    noise(8, 6).save(tmp_path / "image.png")
    assert open_image(str(tmp_path / "image.png")).tobytes() == noise(8, 6).tobytes()


def test_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"^image .*gone\.png does not exist: [^\n]*$"):
        open_image(str(tmp_path / "gone.png"))


@pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "gif", "tif", "webp"])
def test_truncated_image_is_named(tmp_path, extension):
    path = tmp_path / f"cut.{extension}"
    noise(40, 40).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(DataError, match=rf"^image .*cut\.{extension} cannot be read \([^\n]+\): [^\n]*$"):
        open_image(str(path))


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_upper_byte(tmp_path, extension):
    values = np.array([[0, 255, 256], [30_000, 40_000, 65_535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{extension}")
    opened = np.asarray(open_image(str(tmp_path / f"deep.{extension}")))
    assert opened.shape == (2, 3, 3)
    assert np.array_equal(opened, np.repeat((values // 256)[..., None], 3, axis=2))
