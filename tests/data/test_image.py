import warnings

import pytest
import runs
import torch
import world
import zoo
from PIL import Image
from torchvision.transforms import v2

from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.decoding import open_image
from kdpl.errors import DataError


@pytest.mark.parametrize(("width", "height"), [(64, 48), (31, 90), (20, 20), (9, 14), (32, 32)])
def test_evaluation_transform_is_torchvisions(width, height, tmp_path):
    runs.noise(width, height).save(tmp_path / "image.png")
    bicubic = v2.InterpolationMode.BICUBIC
    reference = v2.Compose([v2.Resize(32, bicubic, antialias=True), v2.CenterCrop(32), v2.PILToTensor()])
    tensor = to_tensor(resize_and_crop(open_image(str(tmp_path / "image.png")), 32))
    assert (tensor.dtype, tensor.shape) == (torch.uint8, (3, 32, 32))
    assert torch.equal(tensor, reference(runs.noise(width, height)))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (20_000, 3)])
def test_odd_shapes_pass_the_evaluation_transform(size):
    tensor = to_tensor(resize_and_crop(Image.new("RGB", size, "teal"), 16))
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


@pytest.mark.parametrize("kind", zoo.BAD)
def test_a_bad_image_is_one_sentence_that_names_it_and_says_why(kind, tmp_path):
    name, make, reason = zoo.BAD[kind]
    make(tmp_path / name)
    with world.refused(DataError, reason) as error:
        open_image(str(tmp_path / name))
    assert str(error.value).startswith(f"image {tmp_path / name} ")
