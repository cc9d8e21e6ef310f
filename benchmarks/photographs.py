"""JPEG files of noise, of the size of photographs."""

from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPH = (500, 375)
"""Width and height in pixels, a common size in ImageNet."""


def write_photographs(folder: Path, count: int) -> list[Path]:
    """Write ``count`` files, always the same, and return their paths in order."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    paths = [folder / f"{index:04}.jpg" for index in range(count)]
    for path in paths:
        pixels = draw.integers(0, 256, (*PHOTOGRAPH[::-1], 3), dtype=np.uint8)
        # unsmoothed noise takes longer to decode than photographs
        small = Image.fromarray(pixels).resize((PHOTOGRAPH[0] // 8, PHOTOGRAPH[1] // 8))
        small.resize(PHOTOGRAPH).save(path)
    return paths
