"""ONNX files of a classifier with products in 16 or in 8 bits."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdpl.classifier import Classifier
from kdpl.classifier.export import INPUT, InputType, as_input, metadata, quiet
from kdpl.classifier.formats.onnx import ONNX_EXTRAS, Format, load_onnx, write_onnx

_PRODUCTS = ("Gemm", "MatMul")
_CALIBRATED_AT_ONCE = 4
_PERCENTILE = 99.99
"""Percentage of an activation's values that its range holds; chosen on validation images."""


def write_int8_onnx(
    classifier: Classifier, input_type: InputType, path: Path, images: Tensor
) -> None:
    """Write ONNX whose convolutions and products with weights compute in 8 bits.

    Most of the time goes there.

    Unlabelled images of the domain, uint8 [N, 3, S, S], set the ranges of activations. What takes
    little time computes in float32, since it would add as much to the errors as the rest: products
    within attention, and with weights in 16 bits the first convolution and products of one row for
    each image, such as those of the last block and the projector. The product with the class
    vectors and the score of being none of the classes have float32 weights too: the
    logit scale would multiply their rounding errors.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    batches = torch.split(images, _CALIBRATED_AT_ONCE)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(batches[start_index:end_index])

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.left, None)
            return None if batch is None else {INPUT: as_input(batch, input_type).numpy()}

    with tempfile.TemporaryDirectory() as scratch, quiet():
        plain, folded = Path(scratch) / "float.onnx", Path(scratch) / "folded.onnx"
        write_onnx(classifier, input_type, plain)
        # folds slices of weights, and infers shapes
        quant_pre_process(plain, folded, skip_symbolic_shape=True)
        graph = onnx.load(folded).graph
        rare, frequent = _rare_and_frequent(graph)
        quantize_static(
            folded,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", *_PRODUCTS],
            nodes_to_quantize=frequent,
            per_channel=True,
            # 7 of 8 bits: without VNNI, sums of two 8-bit products overflow
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            # histograms are filled one batch at a time
            extra_options={"CalibPercentile": _PERCENTILE, "CalibStridedMinMax": 1},
        )
    model = onnx.load(path)
    _store_in_16_bits(model.graph, rare)
    onnx.helper.set_model_props(model, metadata(classifier, input_type))
    onnx.save(model, path)


def _rare_and_frequent(graph: Any) -> tuple[list[str], list[str]]:
    """Return the names of the nodes with weights, apart from the heads.

    Those that take little time come first, then the others.

    The former are the first convolution, and products of one row for each image.
    """
    weights, heads = {each.name for each in graph.initializer}, _heads(graph)
    shapes = {each.name: each.type.tensor_type.shape.dim for each in graph.value_info}
    first, *frequent = [node.name for node in graph.node if node.op_type == "Conv"]
    rare = [first]
    for node in graph.node:
        if node.op_type in _PRODUCTS and node.input[1] in weights and node.name not in heads:
            rows = shapes[node.input[0]][1:-1]
            (rare if all(size.dim_value == 1 for size in rows) else frequent).append(node.name)
    return rare, frequent


def _store_in_16_bits(graph: Any, names: list[str]) -> None:
    """Replace the float32 weights of these nodes by float16 ones.

    A runtime casts them back when it loads them.
    """
    from onnx import TensorProto, helper

    weights = {each.name: each for each in graph.initializer}
    for name in [node.input[1] for node in graph.node if node.name in names]:
        half = _half(weights[name])
        graph.initializer.remove(weights[name])
        graph.initializer.append(half)
        graph.node.insert(0, helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))


def _half(weight: Any) -> Any:
    """Return a weight in float16, under a name of its own."""
    from onnx import numpy_helper

    values = numpy_helper.to_array(weight).astype(np.float16)
    return numpy_helper.from_array(values, f"{weight.name}_half")


def write_fp16_onnx(classifier: Classifier, input_type: InputType, path: Path) -> None:
    """Write ONNX whose matrix products and convolutions compute in float16, as under autocast.

    Everything else computes in float32, and so does the product with the class vectors.
    """
    import onnx
    from onnx import TensorProto, helper

    write_onnx(classifier, input_type, path)
    model = onnx.load(path)
    graph = model.graph
    weights, heads = {each.name: each for each in graph.initializer}, _heads(graph)
    nodes: list[Any] = []
    halves: dict[str, str] = {}
    for node in graph.node:
        if node.op_type not in ("Conv", *_PRODUCTS) or node.name in heads:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if name not in halves:
                halves[name] = f"{name}_half"
                if name in weights:
                    graph.initializer.append(_half(weights[name]))
                else:
                    cast = helper.make_node("Cast", [name], [halves[name]], to=TensorProto.FLOAT16)
                    nodes.append(cast)
            node.input[i] = halves[name]
        (output,) = node.output
        node.output[0] = f"{output}_product"
        nodes += [node, helper.make_node("Cast", [node.output[0]], [output], to=TensorProto.FLOAT)]
    used = {name for node in nodes for name in node.input}
    kept = [each for each in graph.initializer if each.name in used]
    for field, items in (("node", nodes), ("initializer", kept)):
        graph.ClearField(field)
        getattr(graph, field).extend(items)
    onnx.save(model, path)


def _heads(graph: Any) -> list[str]:
    """Return the names of the last products, which multiply the feature with class vectors etc."""
    makers = {output: node for node in graph.node for output in node.output}
    heads, waiting = [], [output.name for output in graph.output]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.op_type in _PRODUCTS:
            heads.append(node.name)
            waiting.append(node.input[1])  # a product of constants
        elif node is not None:
            waiting += node.input
    return heads


ONNX_FP16 = Format(".onnx", write_fp16_onnx, load_onnx, ONNX_EXTRAS, rounded=True)
ONNX_INT8 = Format(".onnx", write_int8_onnx, load_onnx, ONNX_EXTRAS, rounded=True, calibrated=True)
