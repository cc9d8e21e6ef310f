"""Writing a file that runs without kdpl, and checking it: what ``python -m kdpl export`` does."""

from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from kdpl.classifier import Classifier
from kdpl.data.decoding import open_image
from kdpl.deploy.export.check import Difference, compare
from kdpl.deploy.export.formats import CALIBRATION_IMAGES, CHECKED_IMAGES, Format
from kdpl.deploy.export.graph import InputType, write_onnx, write_program
from kdpl.deploy.export.quantize import write_int8_onnx
from kdpl.deploy.sources import find_sources
from kdpl.errors import ArtifactError
from kdpl.runtime.files import atomic_path

_NOISE_IMAGES = 32


def write_checked(options: Namespace) -> None:
    """Export a classifier and compare the file's answers with its own; a file that differs does not stay.

    Args:
        options: Those of ``python -m kdpl export``.

    Raises:
        KdplError: The classifier or an image is missing, or the file's answers differ too much.
    """
    out = Path(options.out)
    classifier = Classifier.load(options.classifier)
    calibration = check = None
    if options.calibration is not None:
        check = calibration = _images(classifier, options.calibration, CALIBRATION_IMAGES)
    if options.check is not None:
        check = _images(classifier, options.check, CHECKED_IMAGES)
    of_noise = check is None
    if check is None:
        size = classifier.preprocessing.image_size
        generator = torch.Generator().manual_seed(0)
        check = torch.randint(256, (_NOISE_IMAGES, 3, size, size), dtype=torch.uint8, generator=generator)
    with atomic_path(out) as temporary:
        _write(classifier, options.format, options.input, temporary, calibration)
        difference = compare(classifier, temporary, check, options.input)
        _require_close(difference, options.format, options.tolerance, options.agreement)
    print(f"{out}: {difference}{' (of noise: --check takes real ones)' if of_noise else ''}")


def _images(classifier: Classifier, folder: str, most: int) -> Tensor:
    paths = find_sources([folder], None)
    # spread over the folder, whose images are often sorted by class
    count = min(most, len(paths))
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    return torch.stack([classifier.prepare(open_image(path)) for path in chosen])


def _write(classifier: Classifier, kind: Format, input_type: InputType, path: Path, calibration: Tensor | None) -> None:
    if kind == "torch":
        write_program(classifier, input_type, path)
    elif calibration is not None and kind == "onnx-int8":
        write_int8_onnx(classifier, input_type, path, calibration)
    else:
        write_onnx(classifier, input_type, path)


def _require_close(difference: Difference, kind: Format, tolerance: float, agreement: float) -> None:
    if kind == "onnx-int8":
        if difference.agreement < agreement:
            raise ArtifactError(
                f"the 8-bit file has {difference}, expected {agreement:.1%} or more, and was not kept: calibrate on "
                "more images of the domain, accept less by --agreement, or export --format onnx"
            )
    # written so that a logit that is no number is refused as well
    elif not difference.logits <= tolerance:
        raise ArtifactError(
            f"the file has {difference}, expected {tolerance:.1e} or less, and was not kept: "
            "accept more by --tolerance, or use another --format"
        )
