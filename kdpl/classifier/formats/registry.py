"""The formats that a classifier can be exported in, by name."""

from importlib.util import find_spec
from pathlib import Path

from kdpl.classifier.formats.onnx import ONNX, Format
from kdpl.classifier.formats.onnx_files import ONNX_FP16, ONNX_INT8
from kdpl.classifier.formats.runtime_files import EXECUTORCH, OPENVINO, TORCH
from kdpl.errors import ConfigError
from kdpl.runtime import plugins


def formats() -> dict[str, Format]:
    """Return all formats by name: kdpl's, and those of plugins."""
    return {
        "onnx": ONNX,
        "executorch": EXECUTORCH,
        "onnx-fp16": ONNX_FP16,
        "onnx-int8": ONNX_INT8,
        "openvino": OPENVINO,
        "torch": TORCH,
        **plugins.load_all("formats"),
    }


def require_format(name: str, out: Path, has_calibration: bool) -> Format:
    """Return a format; a ConfigError if it is unknown, or something that it needs is missing.

    That is the ending of the file's name, images to calibrate on, or packages.
    """
    known = formats()
    if name not in known:
        raise ConfigError(f"--format {name} is unknown: give one of {', '.join(known)}")
    chosen = known[name]
    if chosen.ending and out.suffix != chosen.ending:
        raise ConfigError(
            f"--out {out} does not end with {chosen.ending}, which --format {name} "
            "writes: rename it"
        )
    # the name of a folder may have another dot
    endings = {".xml", ".bin", *(each.ending for each in known.values() if each.ending)}
    if not chosen.ending and out.suffix in endings:
        raise ConfigError(
            f"--out {out} ends with {out.suffix}, but the folder that --format "
            f"{name} writes: rename it"
        )
    if chosen.calibrated and not has_calibration:
        raise ConfigError(
            f"--format {name} needs images to calibrate on: give --calibration "
            "FOLDER, unlabelled ones"
        )
    for package, extra in chosen.extras.items():
        if find_spec(package) is None:
            raise ConfigError(f"--format {name} needs {package}: pip install 'kdpl[{extra}]'")
    return chosen
