"""Registry of export formats, by name."""

from importlib.util import find_spec
from pathlib import Path

from kdpl.classifier.formats.onnx import ONNX, Format
from kdpl.classifier.formats.onnx_files import ONNX_FP16, ONNX_INT8
from kdpl.classifier.formats.openvino import OPENVINO
from kdpl.errors import ConfigError

FORMATS = {
    "onnx": ONNX,
    "onnx-fp16": ONNX_FP16,
    "onnx-int8": ONNX_INT8,
    "openvino": OPENVINO,
}


def require_format(name: str, out: Path, has_calibration: bool) -> Format:
    """Return a format; a ConfigError for another ending, or without images or packages it needs."""
    # the format
    if name not in FORMATS:
        raise ConfigError(f"--format {name} is unknown: give one of {', '.join(FORMATS)}")
    chosen = FORMATS[name]

    # the ending
    if chosen.ending and out.suffix != chosen.ending:
        raise ConfigError(
            f"--out {out} does not end with {chosen.ending}, the ending for --format {name}: "
            "rename it"
        )
    # a folder's name may contain a dot, but not end like a file
    if not chosen.ending and out.suffix in (".xml", ".onnx"):
        raise ConfigError(
            f"--out {out} ends with {out.suffix}, but --format {name} writes a folder: rename it"
        )

    # images and packages
    if chosen.calibrated and not has_calibration:
        raise ConfigError(
            f"--format {name} needs images to calibrate on: give --calibration "
            "FOLDER, unlabelled ones"
        )
    for package, extra in chosen.extras.items():
        if find_spec(package) is None:
            raise ConfigError(f"--format {name} needs {package}: pip install 'kdpl[{extra}]'")
    return chosen
