"""``python -m kdpl export CLASSIFIER --format … --out FILE``: write and check a standalone file."""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kdpl.cli.arguments import require_file
from kdpl.errors import ArtifactError, ConfigError, DataError
from kdpl.runtime.files import atomic_path
from kdpl.runtime.run_folder import require_classifier

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from kdpl.classifier import Classifier
    from kdpl.classifier.export import Difference
    from kdpl.classifier.formats.onnx import Format

_CALIBRATION_IMAGES, _CHECKED_IMAGES, _NOISE_IMAGES = 256, 1024, 32
_GOLDEN_IMAGES = 3


def export(
    classifier: str,
    *,
    format: str,
    out: str,
    add_classes: str | None = None,
    input: Literal["uint8", "float"] = "uint8",
    preprocess: Literal["outside", "inside"] = "outside",
    calibration: str | None = None,
    check: str | None = None,
    tolerance: float = 1e-4,
    agreement: float = 0.98,
) -> int:
    """Write a classifier as a file that runs without kdpl.

    The file is compared with the classifier, and discarded if it differs too much. A golden.npz
    beside or in it has three images and their logits, to check other runtimes.

    Args:
        classifier: classifier folder of a student's run
        format: onnx; onnx-fp16 and onnx-int8, with products in 16 or 8 bits; or openvino
        out: file to write, .onnx, or folder of openvino; must not exist yet
        add_classes: class vectors of further classes, written by the class-vectors command
        input: images as bytes, or as floats in 0..1
        preprocess: inside takes images of any size and resizes them in the file; needs ONNX
        calibration: folder of unlabelled images that set the ranges of 8-bit numbers; 256 are used
        check: folder of images to compare on, at most 1024 are used; by default the images of
            --calibration, or noise
        tolerance: largest difference of an output in 32 bits
        agreement: smallest share of equal predictions in 16 and 8 bits, and with preprocessing
            inside
    """
    # check the options before torch is imported
    path = Path(out)
    if path.exists():
        raise ConfigError(f"--out {out} exists already: choose another --out, or remove it")
    require_classifier(Path(classifier))
    require_file("--add-classes", add_classes)

    from kdpl.classifier.bulk import load_classifier
    from kdpl.classifier.export import compare, write_golden
    from kdpl.classifier.formats.registry import require_format

    # load the classifier, and the images to calibrate and compare on
    inside, folder = preprocess == "inside", check or calibration
    kind = require_format(format, path, calibration is not None)
    if inside and (kind.ending != ".onnx" or input == "float"):
        raise ConfigError(
            "--preprocess inside needs ONNX and images as bytes: give --format onnx, onnx-fp16 or "
            "onnx-int8, and --input uint8"
        )
    loaded = load_classifier(classifier, add_classes)
    ranges = _prepared(loaded, calibration, _CALIBRATION_IMAGES) if calibration else None
    count = _CHECKED_IMAGES if check else _CALIBRATION_IMAGES if calibration else _NOISE_IMAGES
    images = _prepared(loaded, folder, count) if check or ranges is None else ranges
    note = (
        "" if folder else " (on noise: remove it and add --check IMAGES to compare on real images)"
    )

    # write the file, and keep it only if it predicts the same
    with atomic_path(path) as temporary:
        kind.write(loaded, input, temporary, *([ranges] if kind.calibrated else []))
        difference = compare(loaded, kind.load(temporary), images, input)
        _require_alike(difference, kind, tolerance, agreement)
        if inside:
            from kdpl.classifier.formats.onnx_preprocessing import preprocess_inside

            preprocess_inside(loaded, temporary)
            difference = compare(
                loaded, kind.load(temporary), _images(loaded, folder, count), input
            )
            _require_alike(difference, kind._replace(rounded=True), tolerance, agreement)
        golden = islice(_images(loaded, folder, count), _GOLDEN_IMAGES)
        name = path.with_suffix(".golden.npz") if kind.ending else temporary / "golden.npz"
        write_golden(loaded, golden, None if inside else input, name)
    print(f"{path}: {difference}{note}")
    return 0


def _require_alike(
    difference: "Difference", kind: "Format", tolerance: float, agreement: float
) -> None:
    """Raise an ArtifactError if a file differs too much from its classifier."""
    if kind.rounded and difference.agreement < agreement:
        more = "calibrate on more images of the domain, " if kind.calibrated else ""
        raise ArtifactError(
            f"the file has {difference}, expected {agreement:.1%} or more, and was not kept: "
            f"{more}accept less with --agreement, or export --format onnx without --preprocess "
            "inside"
        )
    # refuses NaN too
    if not kind.rounded and not difference.largest <= tolerance:
        raise ArtifactError(
            f"the file has {difference}, expected {tolerance:.2g} or less, and was not kept: "
            "accept more with --tolerance, or use another --format"
        )


def _images(classifier: "Classifier", folder: str | None, count: int) -> "Iterator[Image]":
    """Yield decoded images of a folder, or noise of several sizes."""
    import numpy as np
    from PIL.Image import fromarray

    from kdpl.classifier.sources import find_sources
    from kdpl.data.decoding import open_image
    from kdpl.data.sampling import spread

    if folder is None:
        size, rng = classifier.preprocessing.image_size, np.random.default_rng(0)
        for i in range(count):
            edges = (size * (i % 4 + 1) // 2 + 1, size * (i % 3 + 1) // 2 + i, 3)
            yield fromarray(rng.integers(256, size=edges, dtype=np.uint8))
        return

    # evenly spread, because images in a folder are often sorted by class
    paths = spread(find_sources([folder]), count)
    unreadable = []
    for path in paths:
        try:
            image = open_image(path, decoding=classifier.decoding)
        except DataError as error:
            unreadable.append(error)
        else:
            yield image
    if unreadable:
        if len(unreadable) == len(paths):
            raise unreadable[0]
        left_out = f"{len(unreadable)} of {len(paths)} images of {folder}"
        print(f"left out {left_out}: {unreadable[0]}", file=sys.stderr)


def _prepared(classifier: "Classifier", folder: str | None, count: int) -> "Tensor":
    import torch

    return torch.stack([classifier.prepare(image) for image in _images(classifier, folder, count)])
