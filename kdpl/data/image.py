"""Images: the evaluation transform, and their way into a tensor."""

import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The evaluation transform: short edge to ``size`` (bicubic, antialiased), then the centre square.

    Args:
        image: An RGB image of any size.
        size: Edge of the result in pixels.

    Returns:
        An RGB image of ``size`` x ``size`` pixels.
    """
    resized = functional.resize(image, [size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    cropped: Image.Image = functional.center_crop(resized, [size, size])
    return cropped


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An RGB image as a uint8 tensor of shape [3, height, width], values 0 to 255, un-normalised."""
    pixels: torch.Tensor = functional.pil_to_tensor(image)
    return pixels
