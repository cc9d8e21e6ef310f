"""Images: the evaluation transform, and their way into a tensor."""

import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional

_LONGEST = 100  # times its short edge


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The evaluation transform of an RGB image: short edge to ``size`` (bicubic, antialiased), then the centre crop."""
    image = _without_ends(image)
    resized = functional.resize(image, [size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    cropped: Image.Image = functional.center_crop(resized, [size, size])
    return cropped


def _without_ends(image: Image.Image) -> Image.Image:
    """Cut the ends off an image of 20,000 x 1 pixels, say, which would fill the memory when it is enlarged."""
    most = _LONGEST * min(image.size)
    if max(image.size) <= most:
        return image
    left, top = ((edge - min(edge, most)) // 2 for edge in image.size)
    return image.crop((left, top, left + min(image.width, most), top + min(image.height, most)))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB image as a uint8 tensor of shape [3, height, width], values 0 to 255, un-normalised."""
    pixels: torch.Tensor = functional.pil_to_tensor(image)
    return pixels
