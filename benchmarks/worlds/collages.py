"""Collages of one to four photographs of clothes, several labels each.

They are made up of the photographs of docs/datasets.md, section "Photographs without a fetch of
models": items side by side on a white ground, as on a shop's page. ``python -m
benchmarks.worlds.collages --photographs runs/photographs/data/clothing --out FOLDER`` writes them.
Collages of a split are made of the photographs of that split alone, those of training of the
unlabelled ones as well; the order is drawn from fixed seeds.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.worlds.pages import write_drawn

SIZE = 320
"""Edge of a collage, pixels; a photograph has a tile of half an edge."""

COLLAGES = {"train": 400, "val": 100, "test": 300}
MOST_PHOTOGRAPHS = 4

Photograph = tuple[Path, str]
"""The file, and its class."""

_SMALLEST = 0.75  # longer edge of a photograph, as a share of its tile's


def draw_collage(
    photographs: Sequence[Photograph], rng: np.random.Generator
) -> tuple[Image.Image, list[str]]:
    """Draw a collage of one to four of the photographs; returns it, and the classes in it, sorted."""
    collage, tile = Image.new("RGB", (SIZE, SIZE), "white"), SIZE // 2
    count = int(rng.integers(1, MOST_PHOTOGRAPHS + 1))
    chosen = rng.choice(len(photographs), count, replace=False)
    labels = set()
    for place, number in zip(rng.permutation(4)[:count].tolist(), chosen, strict=True):
        file, label = photographs[number]
        edge = int(rng.integers(round(_SMALLEST * tile), tile + 1))
        with Image.open(file) as image:
            photograph = ImageOps.contain(image.convert("RGB"), (edge, edge))
        left = tile * (place % 2) + int(rng.integers(tile - photograph.width + 1))
        top = tile * (place // 2) + int(rng.integers(tile - photograph.height + 1))
        collage.paste(photograph, (left, top))
        labels.add(label)
    return collage, sorted(labels)


def read_photographs(folder: Path) -> dict[str, list[Photograph]]:
    """Find the photographs of each split in a folder of ``benchmarks.worlds.photographs``."""
    found = {
        split: [(file, file.parent.name) for file in sorted((folder / split).glob("*/*.jpg"))]
        for split in COLLAGES
    }
    with (folder / "unlabeled.csv").open(newline="", encoding="utf-8") as file:
        pool = [(folder / "unlabeled" / row["image"], row["class"]) for row in csv.DictReader(file)]
    return found | {"train": found["train"] + pool}


def write_collages(
    photographs: Path, folder: Path, collages: Mapping[str, int] | None = None
) -> Path:
    """Write the collages of each split, and ``collages.csv``, by ``write_drawn``; returns the table."""
    found = read_photographs(photographs)
    return write_drawn(
        folder / "collages.csv",
        collages or COLLAGES,
        lambda split, rng: draw_collage(found[split], rng),
        ending="jpg",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the collages, and print the table's path; returns 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.worlds.collages", description="Collages of photographs of clothes."
    )
    parser.add_argument(
        "--photographs", type=Path, required=True, metavar="FOLDER", help="data/clothing"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    options = parser.parse_args(argv)
    print(write_collages(options.photographs, options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
