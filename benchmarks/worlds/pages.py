"""Pages of one to five handwritten digits: ``python -m benchmarks.worlds.pages --out FOLDER``.

A domain of several labels an image that needs no download. Each page is black, 64 x 64 pixels, with
scikit-learn's digits (``kdpl.data.readers.digits``) at random places and sizes, which do not
overlap. Pages of a split are made of the digits of that split alone, so that no digit of a test page
was seen in training; the order is drawn from fixed seeds.
"""

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kdpl.data.readers.digits import CLASS_NAMES, open_digit, read_digits
from kdpl.data.splits import Record
from kdpl.runtime.files import atomic_path

SIZE = 64
"""Edge of a page, pixels."""

PAGES = {"train": 1200, "val": 200, "test": 600}
MOST_DIGITS = 5

_INK = (4, 4, 28, 28)  # the digit in its frame
_SMALLEST, _LARGEST = 13, 20  # edge of a digit, pixels
_TRIES = 50  # of places for a digit, which is left out if all overlap others


def draw_page(
    digits: Sequence[Record], rng: np.random.Generator, size: int = SIZE
) -> tuple[Image.Image, list[int]]:
    """Draw a page of one to five of the digits; returns it, and the classes on it in rising order."""
    page = Image.new("L", (size, size))
    boxes: list[tuple[int, int, int]] = []
    labels = set()
    for _ in range(rng.integers(1, MOST_DIGITS + 1)):
        source, label = digits[rng.integers(len(digits))]
        edge = int(rng.integers(_SMALLEST, _LARGEST + 1))
        for _ in range(_TRIES):
            x, y = (int(place) for place in rng.integers(0, size - edge + 1, 2))
            apart = (
                x + edge <= left or left + other <= x or y + edge <= top or top + other <= y
                for left, top, other in boxes
            )
            if all(apart):
                digit = open_digit(source).convert("L").crop(_INK)
                page.paste(digit.resize((edge, edge), Image.Resampling.BICUBIC), (x, y))
                boxes.append((x, y, edge))
                labels.add(int(label))
                break
    return page.convert("RGB"), sorted(labels)


def write_pages(folder: Path, pages: Mapping[str, int] | None = None) -> Path:
    """Write the pages of each split, and ``pages.csv``, by ``write_drawn``; returns the table."""

    def draw(split: str, rng: np.random.Generator) -> tuple[Image.Image, list[str]]:
        page, labels = draw_page(getattr(splits, split), rng)
        return page, [CLASS_NAMES[label] for label in labels]

    splits = read_digits()
    return write_drawn(folder / "pages.csv", pages or PAGES, draw)


def write_drawn(
    table: Path,
    counts: Mapping[str, int],
    draw: Callable[[str, np.random.Generator], tuple[Image.Image, Sequence[str]]],
    ending: str = "png",
) -> Path:
    """Write drawn images of several labels each beside their table; returns the table.

    Its columns are ``image``, ``label``, the names of all classes in the image between commas, and
    ``split``. A folder that is there already is kept.

    Args:
        table: The file to write, in a folder for it and its images.
        counts: Images of each split.
        draw: Draws an image of a split, and names its classes; the numbers come from a fixed seed.
        ending: Of the images' names.
    """
    if not table.parent.exists():
        with atomic_path(table.parent) as unfinished:
            rows = []
            for seed, (split, count) in enumerate(counts.items()):
                (unfinished / split).mkdir(parents=True)
                rng = np.random.default_rng(seed)
                for number in range(count):
                    drawn, labels = draw(split, rng)
                    image = f"{split}/{number:04}.{ending}"
                    drawn.save(unfinished / image)
                    rows.append((image, ",".join(labels), split))
            with (unfinished / table.name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("image", "label", "split"), *rows])
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, and print the table's path; returns 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.worlds.pages", description="Pages of handwritten digits."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    options = parser.parse_args(argv)
    print(write_pages(options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
