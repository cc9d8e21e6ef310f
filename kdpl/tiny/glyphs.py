"""Printed glyphs, the images that the miniature CLIPs are pretrained on: digits and letters in matplotlib's fonts."""

import math
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from kdpl.errors import KdplError
from kdpl.tiny.models import IMAGE_SIZE

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "STIXGeneralItalic",
    "cmb10",
    "cmmi10",
    "cmr10",
    "cmss10",
    "cmti10",
    "cmtt10",
)
"""Fonts that every matplotlib since 3.11 ships and that hold the plain digits and letters."""

MASK_SIZE = 64
_GLYPH_SIZE = 46  # longer side of a glyph inside its mask: leaves a margin for thicker strokes
_FONT_SIZE = 56
_CANVAS_SIZE = 128
_NO_CHARACTER = "\uffff"  # never assigned, so every font draws its sign for a missing glyph


@dataclass(frozen=True)
class GlyphClass:
    """One thing to recognise: its kind, the word for it, and the characters that show it."""

    kind: Literal["digit", "letter"]
    name: str
    characters: tuple[str, ...]


CLASSES = (
    *(GlyphClass("digit", name, (str(value),)) for value, name in enumerate(DIGIT_NAMES)),
    *(GlyphClass("letter", letter, (letter, letter.upper())) for letter in string.ascii_lowercase),
)
"""Ten digits and 26 letters; small and capital letters are one class."""


@dataclass(frozen=True)
class GlyphBank:
    """Every character in every font.

    Attributes:
        masks: how much ink a pixel has, float32 [N, 64, 64] in [0, 1].
        classes: index into `CLASSES`, int64 [N].
        fonts: index into the fonts that the bank was rendered with, int64 [N].
    """

    masks: Tensor
    classes: Tensor
    fonts: Tensor

    def sample(self, classes: Tensor, generator: Generator) -> Tensor:
        """Draw one mask for each of the ``classes``, int64 [B]: float32 [B, 64, 64]."""
        members = [torch.nonzero(self.classes == index).flatten() for index in range(len(CLASSES))]
        counts = torch.tensor([len(indices) for indices in members])
        drawn = (torch.rand(len(classes), generator=generator) * counts[classes]).long()
        rows = [members[index][place] for index, place in zip(classes.tolist(), drawn.tolist(), strict=True)]
        return self.masks[torch.stack(rows)]


def font_folder() -> Path:
    """The folder of the fonts that matplotlib ships.

    Raises:
        KdplError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise KdplError(
            "matplotlib is not installed, and its fonts are what the miniature CLIPs are pretrained on: "
            "install it with `pip install 'kdpl[quickstart]'`."
        ) from error
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def render_bank(fonts: tuple[str, ...] = FONTS) -> GlyphBank:
    """Render every character of every class in every font; a character that a font lacks is left out.

    Raises:
        KdplError: matplotlib is not installed, or does not ship one of the fonts.
    """
    folder = font_folder()
    masks: list[Tensor] = []
    classes: list[int] = []
    font_ids: list[int] = []
    for font_id, font_name in enumerate(fonts):
        path = folder / f"{font_name}.ttf"
        if not path.is_file():
            raise KdplError(
                f"The font {font_name} is not in {folder}, where matplotlib was expected to ship it: "
                "install matplotlib again with `pip install --force-reinstall matplotlib`."
            )
        font = ImageFont.truetype(str(path), _FONT_SIZE)
        missing = _draw(_NO_CHARACTER, font).tobytes()
        for class_id, glyph_class in enumerate(CLASSES):
            for character in glyph_class.characters:
                drawing = _draw(character, font)
                box = drawing.getbbox()
                if box is None or drawing.tobytes() == missing:
                    continue
                masks.append(_to_mask(drawing.crop(box)))
                classes.append(class_id)
                font_ids.append(font_id)
    return GlyphBank(torch.stack(masks), torch.tensor(classes), torch.tensor(font_ids))


def _draw(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    canvas = Image.new("L", (_CANVAS_SIZE, _CANVAS_SIZE), 0)
    ImageDraw.Draw(canvas).text((_CANVAS_SIZE // 4, _CANVAS_SIZE // 6), character, font=font, fill=255)
    return canvas


def _to_mask(glyph: Image.Image) -> Tensor:
    """Scale a cropped glyph to the common size and centre it: float32 [64, 64] in [0, 1]."""
    scale = _GLYPH_SIZE / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    mask = Image.new("L", (MASK_SIZE, MASK_SIZE), 0)
    mask.paste(
        glyph.resize((width, height), Image.Resampling.BICUBIC), ((MASK_SIZE - width) // 2, (MASK_SIZE - height) // 2)
    )
    return torch.from_numpy(np.array(mask)).float() / 255


def augment(masks: Tensor, generator: Generator) -> Tensor:
    """Turn masks into pictures: other strokes, other shapes, blur, colours and noise.

    Args:
        masks: float32 [B, 64, 64] in [0, 1].
        generator: where all chance comes from.

    Returns:
        RGB images, float32 [B, 3, 32, 32] in [0, 1].
    """
    ink = _change_strokes(masks[:, None], generator)
    ink = _warp(ink, generator)
    ink = _soften(ink, generator)
    images = _colour(ink, generator)
    noise = torch.randn(images.shape, generator=generator) * _uniform(0.0, 0.08, len(images), generator)
    return (images + noise).clamp(0, 1)


def _uniform(low: float, high: float, batch: int, generator: Generator) -> Tensor:
    """[B, 1, 1, 1] numbers between low and high."""
    return low + (high - low) * torch.rand(batch, 1, 1, 1, generator=generator)


def _change_strokes(ink: Tensor, generator: Generator) -> Tensor:
    """A quarter each: as printed, thicker, much thicker (like a felt pen), half eroded."""
    choice = torch.randint(0, 4, (len(ink),), generator=generator)
    thicker, felt_pen, eroded = (torch.nonzero(choice == kind).flatten() for kind in (1, 2, 3))
    result = ink.clone()
    result[thicker] = F.max_pool2d(ink[thicker], 3, stride=1, padding=1)
    result[felt_pen] = F.max_pool2d(ink[felt_pen], 7, stride=1, padding=3)
    result[eroded] = (ink[eroded] - F.max_pool2d(-ink[eroded], 3, stride=1, padding=1)) / 2
    return result


def _warp(ink: Tensor, generator: Generator) -> Tensor:
    """Rotate, scale, shear, shift and bend, and sample at the models' image size."""
    batch = len(ink)

    def draw(low: float, high: float) -> Tensor:
        return _uniform(low, high, batch, generator).flatten()

    angle = draw(-12, 12) * math.pi / 180
    zoom_x = draw(0.8, 1.45)  # the grid says where to read from: above 1 makes the glyph smaller
    zoom_y = zoom_x * draw(0.8, 1.25)
    shear = draw(-0.2, 0.2)
    matrix = torch.stack(
        [
            torch.stack([angle.cos() * zoom_x, (shear - angle.sin()) * zoom_x, draw(-0.12, 0.12)], dim=1),
            torch.stack([angle.sin() * zoom_y, angle.cos() * zoom_y, draw(-0.12, 0.12)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(matrix, [batch, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    # A 4 × 4 field of small shifts, smoothly spread: hands do not draw straight lines.
    bends = 0.06 * torch.randn(batch, 2, 4, 4, generator=generator)
    grid = grid + F.interpolate(bends, size=IMAGE_SIZE, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    # Halve first: reading a 64-pixel mask at 32 places would skip every other pixel.
    return F.grid_sample(F.avg_pool2d(ink, 2), grid, align_corners=False)


def _soften(ink: Tensor, generator: Generator) -> Tensor:
    """A quarter comes from a 12-pixel picture, a quarter is blurred, half stays sharp."""
    small = F.interpolate(ink, size=12, mode="area")
    coarse = F.interpolate(small, size=ink.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    blurred = F.avg_pool2d(ink, 3, stride=1, padding=1)
    choice = torch.rand(len(ink), 1, 1, 1, generator=generator)
    return torch.where(choice < 0.25, coarse, torch.where(choice < 0.5, blurred, ink))


def _colour(ink: Tensor, generator: Generator) -> Tensor:
    """Paint in two random colours at least 0.35 apart in brightness; one in ten is dark on light, 30 % are grey."""
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
