"""Letters of made-up writers on ruled paper: a domain that needs no download, harder than the digits.

Each image is drawn when it is opened, from the numbers of its writer and letter alone. A writer has
a font, a pen, an ink, a width, a slant, a way to bend all letters, and ruled paper; each letter is
bent once more, and lies on a faint piece of one of scikit-learn's two photographs. Lowercase and
uppercase letters are one class. Training, validation and test images are by different writers;
training images lie on the photographs' left halves, the others on the right ones.

The miniature CLIPs know the fonts, but neither ruled paper nor photographs, and saw little slanted
or dark on light. So most mistakes of a zero-shot teacher have causes that all images share, and
that it can be tuned to.
"""

import string
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from benchmarks.worlds.fonts import FONTS, MASK_SIZE, draw_glyph, load_font
from kdpl.data.decoding import PUBLISHED
from kdpl.data.splits import Reader, Record, Splits
from kdpl.errors import DataError

CLASS_NAMES = tuple(f"letter {letter}" for letter in string.ascii_lowercase)

_SIZE = MASK_SIZE // 2
_CELLS, _CELL = 4, MASK_SIZE // 4  # a mask is bent by moving the corners of 4 x 4 cells
# of the training, validation and test images, and the number of all
_FIRST_WRITERS = (0, 60, 70, 120)

_Pixels = npt.NDArray[np.floating[Any]]


class Letters(Reader):
    """The letters; there is nothing to set."""

    from_user = False
    decoding = PUBLISHED

    def read(self) -> Splits:
        """Read them; see ``read_letters``."""
        return read_letters()


def read_letters() -> Splits:
    """1,560 training, 260 validation and 1,300 test images; DataError without matplotlib."""
    _photographs()
    for font in FONTS:
        load_font(font)
    train, val, test = (
        tuple(
            Record(f"letters/{i // 26:03d}/{CLASS_NAMES[i % 26][-1]}", i % 26)
            for i in range(26 * first, 26 * end)
        )
        for first, end in pairwise(_FIRST_WRITERS)
    )
    return Splits("dataset letters", CLASS_NAMES, train, val, test, None, open_letter)


def open_letter(source: str) -> Image.Image:
    """Open ``letters/<writer>/<letter>`` as a 32 x 32 RGB image, dark on light."""
    _, writer, letter = source.split("/")
    return Image.fromarray(_draw(int(writer), letter))


@cache
def _draw(writer: int, letter: str) -> npt.NDArray[np.uint8]:
    """Draw one image, uint8 [32, 32, 3]."""
    # numpy freezes the stream of RandomState; 26 is the number of no letter
    letters = string.ascii_lowercase
    of_writer, of_image = (
        np.random.RandomState([writer, n]) for n in (len(letters), letters.index(letter))
    )
    ink = _ink(letter, of_writer, of_image)
    rules = _rules(of_writer)
    paper = _paper(writer >= _FIRST_WRITERS[1], of_image)
    colour = paper.mean() - of_writer.uniform(90, 150) + of_writer.uniform(-30, 30, 3)
    image = (
        paper
        + (colour - paper) * np.maximum(ink, rules)[..., None]
        + of_image.normal(0, 6, paper.shape)
    )
    pixels: npt.NDArray[np.uint8] = np.rint(image).clip(0, 255).astype(np.uint8)
    return pixels


def _ink(letter: str, of_writer: np.random.RandomState, of_image: np.random.RandomState) -> _Pixels:
    """A letter as the writer bends and slants it, [32, 32] in [0, 1]."""
    font = load_font(FONTS[of_writer.randint(len(FONTS))])
    glyph = draw_glyph(letter.upper() if of_image.rand() < 0.5 else letter, font)
    assert glyph is not None, letter  # noqa: S101 - all FONTS have all letters
    pen = of_writer.randint(4)
    if pen == 0:
        glyph = Image.blend(glyph, glyph.filter(ImageFilter.MinFilter(3)), 0.6)
    elif pen > 1:
        glyph = glyph.filter(ImageFilter.MaxFilter(2 * pen - 1))
    # of source positions: above 1 shrinks the letter
    zoom_x, zoom_y = of_writer.uniform(0.9, 1.4, 2)
    slant, turn = of_writer.uniform(-0.05, 0.45), of_writer.uniform(-0.1, 0.1)
    steps = _CELL * (np.arange(_CELLS + 1) - _CELLS / 2)
    corners = np.stack(np.meshgrid(steps, steps), axis=-1) @ [
        [zoom_x, turn],
        [slant - turn, zoom_y],
    ]
    corners += of_writer.normal(0, 1.5, corners.shape) + of_image.normal(0, 1.2, corners.shape)
    corners += MASK_SIZE / 2 + of_image.uniform(-3, 3, 2)
    mesh = [
        (
            (x * _CELL, y * _CELL, (x + 1) * _CELL, (y + 1) * _CELL),
            (*corners[y, x], *corners[y + 1, x], *corners[y + 1, x + 1], *corners[y, x + 1]),
        )
        for y in range(_CELLS)
        for x in range(_CELLS)
    ]
    bent = glyph.transform(glyph.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)
    return np.asarray(bent.reduce(2), dtype=float) / 255.0


def _rules(of_writer: np.random.RandomState) -> _Pixels:
    """The rules of the writer's paper, a pixel thick, 6 to 10 apart and fainter than the letter: [32, 1] in [0, 1]."""
    spacing, offset, strength = (
        of_writer.uniform(6, 10),
        of_writer.uniform(0, 10),
        of_writer.uniform(0.4, 0.7),
    )
    return np.where((np.arange(_SIZE) - offset) % spacing < 1, strength, 0.0)[:, None]


def _paper(right_half: bool, of_image: np.random.RandomState) -> _Pixels:
    """Light grey paper through which a piece of a photograph can be seen, [32, 32, 3] in [0, 255]."""
    photograph = _photographs()[of_image.randint(2)]
    side = of_image.randint(48, 160)
    left = of_image.randint(photograph.width // 2 - side) + right_half * photograph.width // 2
    top = of_image.randint(photograph.height - side)
    piece = photograph.resize(
        (_SIZE, _SIZE), Image.Resampling.BOX, (left, top, left + side, top + side)
    )
    return 205 + 0.2 * (np.asarray(piece) - 205.0)


@cache
def _photographs() -> list[Image.Image]:
    """Two photographs of 640 x 427 pixels."""
    try:
        import matplotlib  # noqa: F401 - for its fonts
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise DataError(
            "dataset letters needs matplotlib and scikit-learn: pip install 'kdpl[dev]'"
        ) from error
    return [Image.fromarray(image) for image in load_sample_images().images]
