"""Export of a classifier to a file that runs without kdpl: ONNX, 8-bit ONNX, or a program of torch.export."""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kdpl import __version__
from kdpl.classifier import Classifier
from kdpl.errors import ConfigError

Format = Literal["onnx", "torch", "onnx-int8"]
InputType = Literal["uint8", "float"]
"""Images as bytes 0..255, or as float32 in [0, 1]; normalised inside either way."""

INPUT = "images"
OUTPUTS = ("logits", "probabilities")
_SHAPES = {INPUT: {0: Dim("batch")}}

METADATA_FILE = "kdpl.json"
"""Name of the metadata within a program of torch.export."""

_ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "onnx-int8": ".onnx"}
_PRODUCTS = ("Gemm", "MatMul")
_CHECKED_AT_ONCE, _CALIBRATED_AT_ONCE = 64, 16


def require_format(kind: Format, out: Path, has_calibration: bool) -> None:
    """Raise a ConfigError if the ending, calibration images or packages for a format are missing."""
    if out.suffix != _ENDINGS[kind]:
        raise ConfigError(f"--out {out} does not end with {_ENDINGS[kind]}, which --format {kind} writes: rename it")
    if kind == "onnx-int8" and not has_calibration:
        raise ConfigError("--format onnx-int8 needs images to calibrate on: give --calibration FOLDER, unlabelled ones")
    for package in ("onnx", "onnxruntime", "onnxscript") if out.suffix == ".onnx" else ():
        if find_spec(package) is None:
            raise ConfigError(f"--format {kind} needs {package}: pip install 'kdpl[export]'")


class _Graph(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier(images)
        return logits, logits.softmax(dim=1)


def as_input(images: Tensor, input_type: InputType) -> Tensor:
    """Convert images, uint8 [B, 3, S, S], to the input of an exported file."""
    return images if input_type == "uint8" else images.float() / 255


def metadata(classifier: Classifier, input_type: InputType) -> dict[str, str]:
    """Return the metadata of an exported file: how to prepare images, and the class of each logit."""
    images = classifier.preprocessing
    size, edge = images.image_size, "both edges" if images.resize_mode == "squash" else f"the {images.resize_mode} edge"
    numbers = "uint8 in 0..255" if input_type == "uint8" else "float32 in 0..1"
    return {
        "class_names": json.dumps(classifier.class_names),
        "decoding": json.dumps(asdict(classifier.decoding)),
        "image_size": str(size),
        "resize_mode": images.resize_mode,
        "interpolation": images.interpolation,
        "resize": f"{edge} to {size}, {images.interpolation} with antialiasing as Pillow does it",
        "crop": f"the square of {size} in the centre, with black where the image does not reach",
        "input": f"RGB, [batch, 3, image_size, image_size], {numbers}",
        "logit_scale": str(classifier.logit_scale),
        "kdpl_version": __version__,
    }


def write_program(classifier: Classifier, input_type: InputType, path: Path) -> None:
    """Write a program of torch.export (.pt2) for any batch size."""
    note = json.dumps(metadata(classifier, input_type), indent=2)
    with _quiet():
        torch.export.save(_program(classifier, input_type), path, extra_files={METADATA_FILE: note})


def write_onnx(classifier: Classifier, input_type: InputType, path: Path) -> None:
    """Write ONNX in float32 for any batch size."""
    import onnx

    with _quiet():
        program = _program(classifier, input_type)
        torch.onnx.export(
            program, f=path, output_names=OUTPUTS, dynamic_shapes=_SHAPES, external_data=False, verbose=False
        )
    model = onnx.load(path)
    # the exporter notes the source files of each node
    for each in chain(model.graph.node, model.graph.input, model.graph.output, model.graph.value_info):
        each.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata(classifier, input_type))
    onnx.save(model, path)


def write_int8_onnx(classifier: Classifier, input_type: InputType, path: Path, images: Tensor) -> None:
    """Write ONNX whose matrix products and convolutions compute in 8 bits, with weights scaled by channel.

    Unlabelled images of the domain, uint8 [N, 3, S, S], set the ranges of activations. The product with the class
    vectors, and the label head, stay in float32: the logit scale would multiply their rounding errors.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(torch.split(images, _CALIBRATED_AT_ONCE))

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: as_input(batch, input_type).numpy()}

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        plain = Path(scratch) / "float.onnx"
        write_onnx(classifier, input_type, plain)
        quantize_static(
            plain,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", *_PRODUCTS],
            per_channel=True,
            # 7 of 8 bits: without VNNI, sums of two 8-bit products overflow
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_heads(onnx.load(plain).graph),
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata(classifier, input_type))
    onnx.save(model, path)


def _heads(graph: Any) -> list[str]:
    """Names of the nodes that multiply the feature with class vectors or a label head: the last products."""
    makers = {output: node for node in graph.node for output in node.output}
    heads, waiting = [], [OUTPUTS[0]]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.op_type in _PRODUCTS:
            heads.append(node.name)
        elif node is not None:
            waiting += node.input
    return heads


def _program(classifier: Classifier, input_type: InputType) -> ExportedProgram:
    size = classifier.preprocessing.image_size
    # a batch of one would become a constant
    example = as_input(torch.zeros(2, 3, size, size, dtype=torch.uint8), input_type)
    return torch.export.export(_Graph(classifier).eval(), (example,), dynamic_shapes=_SHAPES)


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class Difference(NamedTuple):
    """Numbers of images compared and of those with the same class, and the largest difference of a logit."""

    images: int
    same: int
    logits: float

    @property
    def agreement(self) -> float:
        """Share of images with the same predicted class."""
        return self.same / self.images

    def __str__(self) -> str:
        same = f"the same class for {self.same} of {self.images} images ({self.agreement:.1%})"
        return f"{same}, logits off by at most {self.logits:.2g}"


@torch.inference_mode()
def compare(classifier: Classifier, path: Path, images: Tensor, input_type: InputType) -> Difference:
    """Run an exported file and its classifier on images, uint8 [N, 3, S, S], N at least 1."""
    run = _load(path)
    same, largest = 0, torch.zeros(())
    for batch in torch.split(images, _CHECKED_AT_ONCE):
        expected, found = classifier(batch), run(as_input(batch, input_type))
        same += int((expected.argmax(dim=1) == found.argmax(dim=1)).sum())
        largest = torch.maximum(largest, (expected - found).abs().max())  # NaN stays NaN
    return Difference(len(images), same, float(largest))


def _load(path: Path) -> Callable[[Tensor], Tensor]:
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda images: module(images)[0]
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])
