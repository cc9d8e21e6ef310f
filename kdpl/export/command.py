"""``python -m kdpl export CLASSIFIER --format … --out FILE``: write a file that runs without kdpl, and check it."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdpl.arguments import Parser, output_file
from kdpl.classifier import Classifier
from kdpl.data.image import open_image
from kdpl.deploy.sources import find_sources
from kdpl.errors import ArtifactError, ConfigError
from kdpl.export.check import Difference, compare
from kdpl.export.graph import InputType, write_onnx, write_program
from kdpl.export.quantize import write_int8_onnx
from kdpl.files import atomic_path

Format = Literal["onnx", "torch", "onnx-int8"]

_CALIBRATION_IMAGES = 256
_CHECKED_IMAGES = 1024
_NOISE_IMAGES = 32


class _Kind(NamedTuple):
    ending: str
    packages: tuple[str, ...]


_KINDS: dict[Format, _Kind] = {
    "onnx": _Kind(".onnx", ("onnx", "onnxruntime", "onnxscript")),
    "torch": _Kind(".pt2", ()),
    "onnx-int8": _Kind(".onnx", ("onnx", "onnxruntime", "onnxscript")),
}


def export(argv: Sequence[str]) -> int:
    """Export a classifier and compare the file's answers with its own; a file that differs does not stay.

    Args:
        argv: Arguments after ``export``.

    Returns:
        0.

    Raises:
        KdplError: A setting does not fit, a package or image is missing, or the file's answers differ too much.
    """
    options = _parser().parse_args(argv)
    out = output_file("--out", options.out)
    _require_fit(options.format, out, options.calibration)
    classifier = Classifier.load(options.classifier)
    calibration = check = None
    if options.calibration is not None:
        check = calibration = _images(classifier, options.calibration, _CALIBRATION_IMAGES)
    if options.check is not None:
        check = _images(classifier, options.check, _CHECKED_IMAGES)
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
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m kdpl export", description="Write a classifier as a file that runs without kdpl.")
    parser.add_argument("classifier", help="classifier folder of a student's run")
    parser.add_argument("--format", choices=tuple(_KINDS), required=True, help="torch: a program of torch.export")
    parser.add_argument("--out", required=True, help="file to write, .onnx or .pt2")
    parser.add_argument("--input", choices=("uint8", "float"), default="uint8", help="bytes, or floats in 0..1")
    parser.add_argument(
        "--calibration", metavar="FOLDER", help=f"unlabelled images for 8 bits; {_CALIBRATION_IMAGES} of them are used"
    )
    parser.add_argument(
        "--check",
        metavar="FOLDER",
        help=f"images that the answers are compared on, at most {_CHECKED_IMAGES}; those of --calibration if not given",
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest difference of a logit in 32 bits (default 1e-4)"
    )
    parser.add_argument(
        "--agreement", type=float, default=0.98, help="smallest share of equal first guesses in 8 bits (default 0.98)"
    )
    return parser


def _require_fit(kind: Format, out: Path, calibration: str | None) -> None:
    ending, packages = _KINDS[kind]
    if out.suffix != ending:
        raise ConfigError(f"--out {out} has another ending than {ending}, which --format {kind} writes: give one")
    if kind == "onnx-int8" and calibration is None:
        raise ConfigError("--format onnx-int8 needs images to calibrate on: give --calibration FOLDER, unlabelled ones")
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(f"--format {kind} needs {package}: pip install 'kdpl[export]'") from error


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
