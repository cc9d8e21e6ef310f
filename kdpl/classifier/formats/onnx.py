"""ONNX, the default export format, and the type of all export formats."""

from collections.abc import Callable
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


class Format(NamedTuple):
    """A format of exported files.

    Attributes:
        ending: Ending of the file's name; empty for a folder.
        write: Takes classifier, input type and path, and with ``calibrated`` images to calibrate
            on.
        load: Returns the function that runs a file.
        extras: Required packages, each with the extra of kdpl that installs it.
        rounded: Logits are rounded, so files are judged by predicted classes.
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

    # weights inside the file, not next to it
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
    # remove the source files that the exporter adds
    for item in chain(graph.node, graph.input, graph.output, graph.value_info):
        item.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata(classifier, input_type))
    onnx.save(model, path)


def load_onnx(path: Path) -> ExportedModel:
    """Read ONNX with onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: [
        torch.from_numpy(output) for output in session.run(None, {INPUT: images.numpy()})
    ]


ONNX_EXTRAS = dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export")
ONNX = Format(".onnx", write_onnx, load_onnx, ONNX_EXTRAS)
