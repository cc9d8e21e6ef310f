"""Images that the miniature CLIPs are pretrained on: printed digits and letters in matplotlib's fonts."""

import math
import string
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from benchmarks.worlds.fonts import FONTS, draw_glyph, load_font
from kdpl.clip.miniatures.models import IMAGE_SIZE

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class GlyphClass(NamedTuple):
    """A class of glyphs: what captions call it, and its characters."""

    nouns: tuple[str, ...]
    characters: tuple[str, ...]


CLASSES = (
    *(
        GlyphClass((f"digit {name}", f"number {name}", name, f"numeral {name}"), (str(value),))
        for value, name in enumerate(DIGIT_NAMES)
    ),
    *(
        GlyphClass(
            (f"letter {letter}", f"character {letter}", f"symbol {letter}"),
            (letter, letter.upper()),
        )
        for letter in string.ascii_lowercase
    ),
)
"""Ten digits and 26 letters; lowercase and uppercase letters are one class."""


class GlyphBank(NamedTuple):
    """Every character in every font: ink as float32 [N, 64, 64] in [0, 1], and indices into ``CLASSES``, int64 [N]."""

    masks: Tensor
    classes: Tensor

    def sample(self, classes: Tensor, generator: Generator) -> Tensor:
        """Draw one mask for each of the ``classes``, int64 [B]: float32 [B, 64, 64]."""
        members = [torch.nonzero(self.classes == index).flatten() for index in range(len(CLASSES))]
        counts = torch.tensor([len(indices) for indices in members])
        drawn = (torch.rand(len(classes), generator=generator) * counts[classes]).long()
        rows = [
            members[index][row] for index, row in zip(classes.tolist(), drawn.tolist(), strict=True)
        ]
        return self.masks[torch.stack(rows)]


def render_bank(fonts: tuple[str, ...] = FONTS) -> GlyphBank:
    """Render every character of every class in every font; characters that a font lacks are left out."""
    masks: list[Tensor] = []
    classes: list[int] = []
    for font in map(load_font, fonts):
        for index, glyph_class in enumerate(CLASSES):
            for mask in (draw_glyph(character, font) for character in glyph_class.characters):
                if mask is not None:
                    masks.append(torch.from_numpy(np.array(mask)).float() / 255)
                    classes.append(index)
    return GlyphBank(torch.stack(masks), torch.tensor(classes))


def augment(masks: Tensor, generator: Generator) -> Tensor:
    """Paint masks, float32 [B, 64, 64], in varied strokes, shapes and colours: float32 [B, 3, 32, 32] in [0, 1]."""
    ink = _soften(_warp(_change_strokes(masks[:, None], generator), generator), generator)
    images = _colour(ink, generator)
    noise = torch.randn(images.shape, generator=generator) * _uniform(
        0.0, 0.08, len(images), generator
    )
    return (images + noise).clamp(0, 1)


def _uniform(low: float, high: float, batch: int, generator: Generator) -> Tensor:
    """Draw numbers between low and high, [B, 1, 1, 1]."""
    return low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator)


def _change_strokes(ink: Tensor, generator: Generator) -> Tensor:
    """Leave a quarter as printed, and make a quarter each thicker, much thicker (like a felt pen) and half eroded."""
    choice = torch.randint(0, 4, (len(ink),), generator=generator)
    thicker, felt_pen, eroded = (torch.nonzero(choice == kind).flatten() for kind in (1, 2, 3))
    result = ink.clone()
    result[thicker] = F.max_pool2d(ink[thicker], 3, stride=1, padding=1)
    result[felt_pen] = F.max_pool2d(ink[felt_pen], 7, stride=1, padding=3)
    result[eroded] = (ink[eroded] - F.max_pool2d(-ink[eroded], 3, stride=1, padding=1)) / 2
    return result


def _warp(ink: Tensor, generator: Generator) -> Tensor:
    """Rotate, scale, shear, shift and bend, and resample to the models' image size."""
    batch = len(ink)

    def draw(low: float, high: float) -> Tensor:
        return _uniform(low, high, batch, generator).flatten()

    angle = draw(-12, 12) * math.pi / 180
    zoom_x = draw(0.8, 1.45)  # the grid holds source positions: above 1 shrinks the glyph
    zoom_y = zoom_x * draw(0.8, 1.25)
    shear = draw(-0.2, 0.2)
    first = torch.stack(
        [angle.cos() * zoom_x, (shear - angle.sin()) * zoom_x, draw(-0.12, 0.12)], dim=1
    )
    second = torch.stack([angle.sin() * zoom_y, angle.cos() * zoom_y, draw(-0.12, 0.12)], dim=1)
    matrix = torch.stack([first, second], dim=1)
    grid = F.affine_grid(matrix, [batch, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    # a smooth 4 × 4 field of small shifts, because handwriting has no straight lines
    bends = 0.06 * torch.randn(batch, 2, 4, 4, generator=generator)
    grid = grid + F.interpolate(bends, size=IMAGE_SIZE, mode="bicubic", align_corners=True).permute(
        0, 2, 3, 1
    )
    # halve first: sampling a 64-pixel mask at 32 positions would skip every other pixel
    return F.grid_sample(F.avg_pool2d(ink, 2), grid, align_corners=False)


def _soften(ink: Tensor, generator: Generator) -> Tensor:
    """Take a quarter from a 12-pixel image, blur a quarter, leave half sharp."""
    small = F.interpolate(ink, size=12, mode="area")
    coarse = F.interpolate(small, size=ink.shape[-2:], mode="bicubic", align_corners=False).clamp(
        0, 1
    )
    blurred = F.avg_pool2d(ink, 3, stride=1, padding=1)
    choice = torch.rand(len(ink), 1, 1, 1, generator=generator)
    return torch.where(choice < 0.25, coarse, torch.where(choice < 0.5, blurred, ink))


def _colour(ink: Tensor, generator: Generator) -> Tensor:
    """Paint in two random colours at least 0.35 apart in brightness; 10 % are dark on light, 30 % are grey."""
    batch = len(ink)
    colours = torch.rand(2, batch, 3, 1, 1, generator=generator)
    grey = _uniform(0, 1, batch, generator) < 0.3
    colours = torch.where(grey, colours[:, :, :1], colours)
    difference = (colours[0] - colours[1]).mean(dim=1, keepdim=True)
    direction = torch.where(_uniform(0, 1, batch, generator) < 0.1, -1.0, 1.0)
    wrong_way = difference * direction < 0
    foreground = torch.where(wrong_way, colours[1], colours[0])
    background = torch.where(wrong_way, colours[0], colours[1])
    push = direction * (0.35 - difference.abs()).clamp(min=0) / 2
    foreground, background = (foreground + push).clamp(0, 1), (background - push).clamp(0, 1)
    return background + (foreground - background) * ink
