"""ONNX, the format that the core exports to, and what every format of exported files has."""

from collections.abc import Callable
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch

from kdpl.classifier.export import (
    BATCHES,
    INPUT,
    ExportedModel,
    InputType,
    metadata,
    outputs,
    program,
    quiet,
)
from kdpl.classifier.model import Classifier
from kdpl.errors import ConfigError
from kdpl.runtime import plugins


class Format(NamedTuple):
    """A format of exported files.

    Attributes:
        ending: Of the file's name; empty for a folder.
        write: Takes classifier, input type and path, and with ``calibrated`` images to calibrate
            on.
        load: Returns the function that runs a file.
        extras: Packages that it needs, and the extra of kdpl that brings them.
        rounded: Logits are rounded, so that files are judged by predicted classes.
        calibrated: Unlabelled images set the ranges of its numbers.
    """

    ending: str
    write: Callable[..., None]
    load: Callable[[Path], ExportedModel]
    extras: dict[str, str]
    rounded: bool = False
    calibrated: bool = False


def write_onnx(classifier: Classifier, input_type: InputType, path: Path) -> None:
    """Write ONNX in float32 for any batch size."""
    import onnx

    with quiet():
        torch.onnx.export(
            program(classifier, input_type),
            f=path,
            output_names=outputs(classifier),
            dynamic_shapes=BATCHES,
            external_data=False,
            verbose=False,
        )
    model = onnx.load(path)
    graph = model.graph
    # the exporter notes the source files of each node
    for each in chain(graph.node, graph.input, graph.output, graph.value_info):
        each.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata(classifier, input_type))
    onnx.save(model, path)


def load_onnx(path: Path) -> ExportedModel:
    """Read ONNX with onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: [
        torch.from_numpy(each) for each in session.run(None, {INPUT: images.numpy()})
    ]


ONNX_EXTRAS = dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export")
ONNX = Format(".onnx", write_onnx, load_onnx, ONNX_EXTRAS)


def formats() -> dict[str, Format]:
    """Return all formats by name: kdpl's, and those of plugins."""
    from kdpl.classifier.formats.onnx_files import ONNX_FP16, ONNX_INT8
    from kdpl.classifier.formats.runtime_files import EXECUTORCH, OPENVINO, TORCH

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
