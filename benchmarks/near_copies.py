"""``python -m benchmarks.near_copies FOLDER``: near-copies found, by how they were made, false alarms, and time.

Copies of 300 photographs of a folder are looked for among all of its images. The pairs that are
found among the images themselves are listed, for a person to judge.
"""

import argparse
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from kdpl.data.decoding import open_image
from kdpl.data.inspection import picture_of
from kdpl.data.near_copies import near_copies
from kdpl.data.paths import find_images

COPIES = 300


def saved(image: Image.Image, kind: str = "JPEG", quality: int = 85) -> Image.Image:
    """Save an image in a lossy format and read it again."""
    file = BytesIO()
    image.save(file, kind, quality=quality)
    return Image.open(file).convert("RGB")


def resized(image: Image.Image, factor: float) -> Image.Image:
    """Scale both edges."""
    return saved(image.resize((round(image.width * factor), round(image.height * factor))))


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut a twentieth off both edges, more on one side or the other."""
    across, down = image.width // 20, image.height // 20
    left, top = (int(rng.integers(most + 1)) for most in (across, down))
    return saved(image.crop((left, top, image.width - across + left, image.height - down + top)))


def turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn it a little, with black corners."""
    return saved(image.rotate(float(rng.choice([-3, -2, 2, 3])), Image.Resampling.BICUBIC))


def marked(image: Image.Image) -> Image.Image:
    """Write half-transparent text across it."""
    mark = Image.new("RGBA", image.size)
    font = ImageFont.load_default(size=image.height // 8)
    where = image.width / 10, image.height * 0.7
    ImageDraw.Draw(mark).text(where, "© example.com", fill=(255, 255, 255, 150), font=font)
    return saved(Image.alpha_composite(image.convert("RGBA"), mark).convert("RGB"))


Transformation = Callable[[Image.Image, np.random.Generator], Image.Image]
TRANSFORMATIONS: dict[str, Transformation] = {
    "JPEG, quality 30 to 90": lambda image, rng: saved(image, quality=int(rng.integers(30, 91))),
    "WebP, quality 50": lambda image, _: saved(image, "WEBP", 50),
    "half the size": lambda image, _: resized(image, 0.5),
    "double the size": lambda image, _: resized(image, 2),
    "5 % cropped": cropped,
    "turned by 2 or 3 degrees": turned,
    "mirrored": lambda image, _: saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "30 % darker or brighter": lambda image, rng: saved(
        ImageEnhance.Brightness(image).enhance(float(rng.choice([0.7, 1.3])))
    ),
    "grey": lambda image, _: saved(image.convert("L").convert("RGB")),
    "text across it": lambda image, _: marked(image),
    "blurred by 2 pixels": lambda image, _: saved(image.filter(ImageFilter.GaussianBlur(2))),
}


def main() -> None:
    """Print what is found in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    paths = find_images(folder)
    pictures = [picture_of(open_image(path)) for path in paths]

    # pairs among the images themselves
    start = time.perf_counter()
    found = [first for _, first in near_copies(pictures, bytes, len(pictures))]
    seconds = time.perf_counter() - start
    pairs = [
        (path, paths[first]) for path, first in zip(paths, found, strict=True) if first is not None
    ]
    print(f"{len(paths)} images, each with all before it: {seconds:.1f} s, {len(pairs)} pairs")
    for copy, original in pairs:
        print(f"  {copy} {original}")

    # copies of each kind
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(paths))[:COPIES]
    for name, transform in TRANSFORMATIONS.items():
        copies = [picture_of(transform(open_image(paths[i]), rng)) for i in chosen]
        results = [first for _, first in near_copies([*pictures, *copies], bytes, len(pictures))]
        recalled = [
            first in (i, found[i]) and first is not None
            for first, i in zip(results[len(pictures) :], chosen, strict=True)
        ]
        print(f"| {name} | {sum(recalled) / len(recalled):.1%} |", flush=True)


if __name__ == "__main__":
    main()
