"""Characters in the fonts that matplotlib ships, as masks of ink."""

from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from kdpl.errors import DataError

FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "BolIta", "Italic")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
"""Fonts with all digits and letters that every matplotlib since 3.11 ships."""

MASK_SIZE = 64
_GLYPH_SIZE = 46  # longer side of a glyph in its mask, with a margin for thicker strokes
_FONT_SIZE = 56
_CANVAS_SIZE = 128
_NO_CHARACTER = "\uffff"  # unassigned: every font draws its symbol for a missing glyph


@cache
def load_font(name: str) -> ImageFont.FreeTypeFont:
    """Load one of matplotlib's fonts by its file's name; DataError if it is too old to have it."""
    # in the extra dev
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not file.exists():
        raise DataError(
            f"matplotlib {matplotlib.__version__} lacks the font {name}: install matplotlib 3.11 "
            "or newer"
        )
    return ImageFont.truetype(str(file), _FONT_SIZE)


def draw_glyph(character: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """Draw a character in the middle of a 64 x 64 mask, its longer side 46 pixels; None if the font lacks it."""
    drawing = _draw(character, font)
    box = drawing.getbbox()
    if box is None or drawing.tobytes() == _draw(_NO_CHARACTER, font).tobytes():
        return None
    glyph = drawing.crop(box)
    scale = _GLYPH_SIZE / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    mask = Image.new("L", (MASK_SIZE, MASK_SIZE), 0)
    corner = ((MASK_SIZE - width) // 2, (MASK_SIZE - height) // 2)
    mask.paste(glyph.resize((width, height), Image.Resampling.BICUBIC), corner)
    return mask


def _draw(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    canvas = Image.new("L", (_CANVAS_SIZE, _CANVAS_SIZE), 0)
    ImageDraw.Draw(canvas).text(
        (_CANVAS_SIZE // 4, _CANVAS_SIZE // 6), character, font=font, fill=255
    )
    return canvas
