"""``python -m kdpl predict CLASSIFIER IMAGES…``: images in, CSV out."""

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import track

from kdpl.arguments import Parser, output_file
from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.data.folder import find_images
from kdpl.errors import ConfigError, DataError
from kdpl.files import atomic_path


def predict(argv: Sequence[str]) -> int:
    """Classify images and write ``path,class,probability`` rows in the order given.

    Args:
        argv: Arguments after ``predict``.

    Returns:
        0.

    Raises:
        KdplError: The classifier or an image is missing or damaged.
    """
    parser = Parser(
        prog="python -m kdpl predict", description="Classify images with a finished classifier; writes CSV."
    )
    parser.add_argument("classifier", help="classifier folder of a student's run")
    parser.add_argument("images", nargs="+", help="image files, and folders that are searched recursively")
    parser.add_argument("--out", help="CSV file to write; standard output if not given")
    parser.add_argument(
        "--add-classes", metavar="FILE", help="class vectors of further classes, which the class-vectors command wrote"
    )
    parser.add_argument("--top-k", type=int, default=1, help="guesses for each image, one row each (default 1)")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (default 64)")
    options = parser.parse_args(argv)
    for name, value in (("--top-k", options.top_k), ("--batch-size", options.batch_size)):
        if value < 1:
            raise ConfigError(f"{name} is {value}, expected 1 or more: give another number")
    out = output_file("--out", options.out) if options.out is not None else None
    paths = _find(options.images)
    classifier = Classifier.load(options.classifier)
    if options.add_classes is not None:
        classifier = classifier.add_classes(ClassVectors.load(Path(options.add_classes)))
    starts = range(0, len(paths), options.batch_size)
    with _open_output(out) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "class", "probability"))
        console = Console(stderr=True)
        hidden = not console.is_terminal
        for start in track(starts, description="classifying", console=console, transient=True, disable=hidden):
            batch = paths[start : start + options.batch_size]
            for path, guesses in zip(batch, classifier.predict(batch, options.top_k), strict=True):
                writer.writerows((path, guess.class_name, f"{guess.probability:.6f}") for guess in guesses)
    return 0


def _find(images: Sequence[str]) -> list[Path]:
    paths: list[Path] = []
    for item in images:
        path = Path(item)
        if path.is_dir():
            found = [Path(file) for file in find_images(path)]
            if not found:
                raise DataError(f"folder {path} has no images: give image files or a folder that has some")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise DataError(f"image {path} does not exist: give image files or folders")
    return paths


@contextmanager
def _open_output(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        try:
            yield sys.stdout
            sys.stdout.flush()
        except BrokenPipeError:
            # whoever read the lines has seen enough, as head does; Python would complain once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        yield file
