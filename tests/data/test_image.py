import pytest
import torch
from PIL import Image
from runs import noise
from torchvision.transforms import v2

from kdpl.data.decoding import open_image
from kdpl.data.image import resize_and_crop, to_tensor


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


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (20_000, 3)])
def test_odd_shapes_pass_the_evaluation_transform(tmp_path, size):
    Image.new("RGB", size, "teal").save(tmp_path / "odd.png")
    tensor = to_tensor(resize_and_crop(open_image(str(tmp_path / "odd.png")), 16))
    assert tensor.shape == (3, 16, 16)
    assert tensor.float().mean(dim=(1, 2)).tolist() == [0, 128, 128]
