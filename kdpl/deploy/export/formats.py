"""The formats of an export, and what each needs; imports nothing heavy."""

import importlib
from pathlib import Path
from typing import Literal, NamedTuple

from kdpl.errors import ConfigError

Format = Literal["onnx", "torch", "onnx-int8"]

CALIBRATION_IMAGES = 256
CHECKED_IMAGES = 1024


class _Kind(NamedTuple):
    ending: str
    packages: tuple[str, ...]


KINDS: dict[Format, _Kind] = {
    "onnx": _Kind(".onnx", ("onnx", "onnxruntime", "onnxscript")),
    "torch": _Kind(".pt2", ()),
    "onnx-int8": _Kind(".onnx", ("onnx", "onnxruntime", "onnxscript")),
}


def require_fit(kind: Format, out: Path, calibration: str | None) -> None:
    """Refuse an ending or a lack of images or packages that a format cannot do with.

    Raises:
        ConfigError: One of them.
    """
    ending, packages = KINDS[kind]
    if out.suffix != ending:
        raise ConfigError(f"--out {out} has another ending than {ending}, which --format {kind} writes: give one")
    if kind == "onnx-int8" and calibration is None:
        raise ConfigError("--format onnx-int8 needs images to calibrate on: give --calibration FOLDER, unlabelled ones")
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(f"--format {kind} needs {package}: pip install 'kdpl[export]'") from error
