"""JPEG files to decode, of the size of photographs and of nothing in particular."""

from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPH = (500, 375)
"""Width and height in pixels, those of most of ImageNet's."""


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Write so many, always the same, and give their paths in order."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    paths = [folder / f"{index:04}.jpg" for index in range(count)]
    for path in paths:
        pixels = draw.integers(0, 256, (*PHOTOGRAPH[::-1], 3), dtype=np.uint8)
        # smoothed, or it would take longer to decode than any photograph
        small = Image.fromarray(pixels).resize((PHOTOGRAPH[0] // 8, PHOTOGRAPH[1] // 8))
        small.resize(PHOTOGRAPH).save(path)
    return paths
