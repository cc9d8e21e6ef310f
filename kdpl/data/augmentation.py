"""Views of images: the evaluation transform, and random views, each drawn as a few numbers."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image, fromarray
from torchvision.transforms.v2 import InterpolationMode, functional

from kdpl.data.decoding import Decoding, open_image
from kdpl.errors import ConfigError, DataError, reason
from kdpl.runtime.resizing import Resizing

GivenImage = str | Path | Image | torch.Tensor
"""Input of a classifier: a path, a PIL image, or a uint8 tensor [3, H, W]."""

Parameters = tuple[float, ...]
LONGEST = 100  # times its short edge


def resize_and_crop(image: Image, to: Resizing) -> Image:
    """Apply the evaluation transform of open_clip and timm to an RGB image."""
    # resize one edge or both, as the mode says
    edges = [to.edge, to.edge]
    if to.resize_mode == "shortest":
        image, edges = without_ends(image), [to.edge]
    resized = functional.resize(image, edges, InterpolationMode(to.interpolation), antialias=True)

    # crop the centre along an edge that is too long, and pad an edge that is too short
    square: Image = functional.center_crop(resized, [to.image_size])
    return square


def without_ends(image: Image) -> Image:
    """Crop the ends of an image of, say, 20,000 x 1 pixels, which would exhaust the memory."""
    most = LONGEST * min(image.size)
    if max(image.size) <= most:
        return image
    middle: Image = functional.center_crop(image, [min(edge, most) for edge in image.size[::-1]])
    return middle


def open_given(image: GivenImage, decoding: Decoding) -> Image:
    """Open an image given to a classifier."""
    if isinstance(image, torch.Tensor):
        return fromarray(image.permute(1, 2, 0).cpu().numpy())
    if isinstance(image, str | Path):
        return open_image(str(image), decoding=decoding)
    if not isinstance(image, Image):
        raise ConfigError(
            f"the classifier was given a {type(image).__name__}, expected paths, PIL images or "
            "tensors: convert it with PIL.Image.fromarray"
        )
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise any error on damaged bytes
        raise DataError(f"an image cannot be decoded ({reason(error)}): leave it out") from error
    return image


def to_tensor(image: Image) -> torch.Tensor:
    """Convert an RGB image to a uint8 tensor [3, height, width], values 0 to 255, un-normalised."""
    pixels: torch.Tensor = functional.pil_to_tensor(image)
    return pixels


class Augmentation(ABC):
    """Base class of random views of an image; the attributes are its settings."""

    @abstractmethod
    def parameters(self, rng: np.random.Generator, width: int, height: int) -> Parameters:
        """Draw the numbers that define one view of an image of ``width`` x ``height`` pixels."""

    @abstractmethod
    def apply(self, image: Image, parameters: Parameters, to: Resizing) -> Image:
        """Make the view of an RGB image that the parameters define, resized as ``to`` says."""


class NoAugmentation(Augmentation):
    """Evaluation transform: all views of an image are the same."""

    def parameters(self, rng: np.random.Generator, width: int, height: int) -> Parameters:
        """Draw nothing."""
        return ()

    def apply(self, image: Image, parameters: Parameters, to: Resizing) -> Image:
        """Resize as in evaluation."""
        return resize_and_crop(image, to)


@dataclass(eq=False)
class HalfWhole(Augmentation):
    """Evaluation transform for a random half of the views, an augmentation for the rest.

    For targets of an image rather than a view: a crop may not show what they name.
    """

    augmentation: Augmentation

    def parameters(self, rng: np.random.Generator, width: int, height: int) -> Parameters:
        """Draw nothing for the evaluation transform, or 1 and the augmentation's numbers."""
        if rng.random() < 0.5:
            return ()
        return (1.0, *self.augmentation.parameters(rng, width, height))

    def apply(self, image: Image, parameters: Parameters, to: Resizing) -> Image:
        """Resize as in evaluation, or apply the augmentation."""
        if not parameters:
            return resize_and_crop(image, to)
        return self.augmentation.apply(image, parameters[1:], to)


@dataclass(eq=False)
class RandomResizedCrop(Augmentation):
    """Crop of random area and aspect ratio, resized, with a random flip, as published.

    Args:
        scale: Smallest and largest area of the crop, as a share of the image, in (0, 1].
        ratio: Smallest and largest width / height of the crop, drawn uniformly in log space.
        flip: Probability of a horizontal flip.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def parameters(self, rng: np.random.Generator, width: int, height: int) -> Parameters:
        """Draw (top, left, crop height, crop width, flipped) in pixels; ``flipped`` is 0 or 1."""
        # ten tries, as in torchvision: not every area fits every ratio
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            crop_width = round(math.sqrt(area * aspect))
            crop_height = round(math.sqrt(area / aspect))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(rng.integers(height - crop_height + 1))
                left = int(rng.integers(width - crop_width + 1))
                break
        else:  # the largest crop of an allowed ratio, in the centre
            crop_width = min(width, max(1, round(height * self.ratio[1])))
            crop_height = min(height, max(1, round(width / self.ratio[0])))
            top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return (top, left, crop_height, crop_width, int(rng.random() < self.flip))

    def apply(self, image: Image, parameters: Parameters, to: Resizing) -> Image:
        """Crop, resize with the tower's interpolation (antialiased) and flip."""
        # the crop becomes the square, as published: resize_mode and crop_pct are unused
        top, left, height, width, flipped = (int(number) for number in parameters)
        edges, interpolation = [to.image_size, to.image_size], InterpolationMode(to.interpolation)
        view: Image = functional.resized_crop(
            image, top, left, height, width, edges, interpolation, antialias=True
        )
        return functional.horizontal_flip(view) if flipped else view


@dataclass(eq=False)
class LightAffine(Augmentation):
    """Small rotation, scaling and shift, without flips.

    For images that must not be mirrored, such as digits.

    Args:
        degrees: Largest rotation in either direction.
        scale: Smallest and largest magnification.
        translate: Largest shift along each axis, as a share of the view's edge.
    """

    degrees: float = 7.0
    scale: tuple[float, float] = (0.9, 1.1)
    translate: float = 0.05

    def parameters(self, rng: np.random.Generator, width: int, height: int) -> Parameters:
        """Draw (degrees, magnification, shift right and down as shares of the view's edge)."""
        return (
            rng.uniform(-self.degrees, self.degrees),
            rng.uniform(*self.scale),
            rng.uniform(-self.translate, self.translate),
            rng.uniform(-self.translate, self.translate),
        )

    def apply(self, image: Image, parameters: Parameters, to: Resizing) -> Image:
        """Resize and crop as in evaluation, then move the pixels (bilinear), filling with black."""
        angle, scale, right, down = parameters
        view: Image = functional.affine(
            resize_and_crop(image, to),
            angle=angle,
            translate=[right * to.image_size, down * to.image_size],
            scale=scale,
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
            fill=[0.0, 0.0, 0.0],
        )
        return view


AUGMENTATIONS: dict[str, Callable[[], Augmentation]] = {
    "random_resized_crop": RandomResizedCrop,
    "light_affine": LightAffine,
    "none": NoAugmentation,
}


def build_augmentation(augmentation: str | Augmentation) -> Augmentation:
    """Return an augmentation, built if given by name; ConfigError if the name is unknown."""
    if isinstance(augmentation, Augmentation):
        return augmentation
    if augmentation not in AUGMENTATIONS:
        raise ConfigError(
            f"augmentation {augmentation!r} is unknown: choose one of {', '.join(AUGMENTATIONS)}"
        )
    return AUGMENTATIONS[augmentation]()
