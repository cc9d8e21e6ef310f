"""The formats of exported files: how each is written and run, and what it needs."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from kdpl.classifier.export import Run, load_program, write_program
from kdpl.errors import ConfigError
from kdpl.formats.onnx_files import load_onnx, write_half_onnx, write_int8_onnx, write_onnx
from kdpl.formats.runtime_files import load_executorch, load_openvino, write_executorch, write_openvino

FormatName = Literal["onnx", "onnx-fp16", "onnx-bf16", "onnx-int8", "openvino", "executorch", "torch"]


class Format(NamedTuple):
    """A format of exported files.

    Attributes:
        ending: Of the file's name; empty for a folder.
        write: Takes classifier, input type and path, and in 8 bits images to calibrate on.
        load: Returns the function that runs a file.
        extras: Packages that it needs, and the extra of kdpl that brings them.
        rounded: Logits are rounded, so that files are judged by predicted classes.
    """

    ending: str
    write: Callable[..., None]
    load: Callable[[Path], Run]
    extras: dict[str, str]
    rounded: bool = False


_ONNX = dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export")
_OPENVINO = _ONNX | {"openvino": "openvino"}

FORMATS: dict[FormatName, Format] = {
    "onnx": Format(".onnx", write_onnx, load_onnx, _ONNX),
    "onnx-fp16": Format(".onnx", partial(write_half_onnx, dtype=torch.float16), load_onnx, _ONNX, True),
    # onnxruntime has no bfloat16 products on a CPU
    "onnx-bf16": Format(".onnx", partial(write_half_onnx, dtype=torch.bfloat16), load_openvino, _OPENVINO, True),
    "onnx-int8": Format(".onnx", write_int8_onnx, load_onnx, _ONNX, True),
    "openvino": Format("", write_openvino, load_openvino, _OPENVINO),
    "executorch": Format(".pte", write_executorch, load_executorch, {"executorch": "executorch"}),
    "torch": Format(".pt2", write_program, load_program, {}),
}

_FILE_ENDINGS = {".xml", ".bin", *(each.ending for each in FORMATS.values() if each.ending)}
"""Those that a folder would be mistaken for a file by; the name of a folder may have another dot."""


def require_format(name: FormatName, out: Path, has_calibration: bool) -> Format:
    """Return a format; a ConfigError if the ending, calibration images or packages for it are missing."""
    found = FORMATS[name]
    if found.ending and out.suffix != found.ending:
        raise ConfigError(f"--out {out} does not end with {found.ending}, which --format {name} writes: rename it")
    if not found.ending and out.suffix in _FILE_ENDINGS:
        raise ConfigError(f"--out {out} ends with {out.suffix}, but the folder that --format {name} writes: rename it")
    if name == "onnx-int8" and not has_calibration:
        raise ConfigError("--format onnx-int8 needs images to calibrate on: give --calibration FOLDER, unlabelled ones")
    for package, extra in found.extras.items():
        if find_spec(package) is None:
            raise ConfigError(f"--format {name} needs {package}: pip install 'kdpl[{extra}]'")
    return found
