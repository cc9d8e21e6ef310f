"""``python -m kdpl export CLASSIFIER --format … --out FILE``: write and check a standalone file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kdpl.cli.arguments import require_file
from kdpl.errors import ArtifactError, ConfigError, DataError
from kdpl.runtime.files import atomic_path
from kdpl.runtime.run_folder import require_classifier

if TYPE_CHECKING:
    from torch import Tensor

    from kdpl.classifier import Classifier

_CALIBRATION_IMAGES, _CHECKED_IMAGES, _NOISE_IMAGES = 256, 1024, 32


def export(
    classifier: str,
    *,
    format: str,
    out: str,
    add_classes: str | None = None,
    input: Literal["uint8", "float"] = "uint8",
    calibration: str | None = None,
    check: str | None = None,
    tolerance: float = 1e-4,
    agreement: float = 0.98,
) -> int:
    """Write a classifier as a file that runs without kdpl.

    The file is compared with the classifier, and discarded if it differs too much.

    Args:
        classifier: classifier folder of a student's run
        format: onnx; onnx-fp16 and onnx-int8, with products in 16 or 8 bits; or openvino
        out: file to write, .onnx, or folder of openvino; must not exist yet
        add_classes: class vectors of further classes, written by the class-vectors command
        input: images as bytes, or as floats in 0..1
        calibration: folder of unlabelled images that set the ranges of 8-bit numbers; 256 are used
        check: folder of images to compare on, at most 1024 are used; by default the images of
            --calibration, or noise
        tolerance: largest difference of an output in 32 bits
        agreement: smallest share of equal predictions in 16 and 8 bits
    """
    # check the options before torch is imported
    path = Path(out)
    if path.exists():
        raise ConfigError(f"--out {out} exists already: choose another --out, or remove it")
    require_classifier(Path(classifier))
    require_file("--add-classes", add_classes)

    import torch

    from kdpl.classifier.bulk import load_classifier
    from kdpl.classifier.export import compare
    from kdpl.classifier.formats.registry import require_format

    # load the classifier, and the images to calibrate and compare on
    kind = require_format(format, path, calibration is not None)
    loaded = load_classifier(classifier, add_classes)
    ranges = _images(loaded, calibration, _CALIBRATION_IMAGES) if calibration is not None else None
    images, note = _images(loaded, check, _CHECKED_IMAGES) if check is not None else ranges, ""
    if images is None:
        size, generator = loaded.preprocessing.image_size, torch.Generator().manual_seed(0)
        images = torch.randint(
            256, (_NOISE_IMAGES, 3, size, size), dtype=torch.uint8, generator=generator
        )
        note = " (on noise: remove it and add --check IMAGES to compare on real images)"

    # write the file, and keep it only if it predicts the same
    with atomic_path(path) as temporary:
        kind.write(loaded, input, temporary, *([ranges] if kind.calibrated else []))
        difference = compare(loaded, kind.load(temporary), images, input)
        if kind.rounded and difference.agreement < agreement:
            more = "calibrate on more images of the domain, " if kind.calibrated else ""
            raise ArtifactError(
                f"the file has {difference}, expected {agreement:.1%} or more, and was not kept: "
                f"{more}accept less with --agreement, or export --format onnx"
            )
        # refuses NaN too
        if not kind.rounded and not difference.largest <= tolerance:
            raise ArtifactError(
                f"the file has {difference}, expected {tolerance:.2g} or less, and was not kept: "
                "accept more with --tolerance, or use another --format"
            )
    print(f"{path}: {difference}{note}")
    return 0


def _images(classifier: "Classifier", folder: str, count: int) -> "Tensor":
    import torch

    from kdpl.classifier.sources import find_sources
    from kdpl.data.decoding import open_image
    from kdpl.data.sampling import spread

    # evenly spread, because images in a folder are often sorted by class
    paths = spread(find_sources([folder]), count)
    images, unreadable = [], []
    for path in paths:
        try:
            image = open_image(path, decoding=classifier.decoding)
        except DataError as error:
            unreadable.append(error)
        else:
            images.append(classifier.prepare(image))
    if unreadable:
        if not images:
            raise unreadable[0]
        left_out = f"{len(unreadable)} of {len(paths)} images of {folder}"
        print(f"left out {left_out}: {unreadable[0]}", file=sys.stderr)
    return torch.stack(images)
