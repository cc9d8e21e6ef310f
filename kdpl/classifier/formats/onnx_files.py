"""ONNX files of a classifier with products in 16 or 8 bits."""

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
"""Percentage of an activation's values within its range; chosen on validation images."""


def write_int8_onnx(
    classifier: Classifier, input_type: InputType, path: Path, images: Tensor
) -> None:
    """Write ONNX whose convolutions and products with weights compute in 8 bits.

    Unlabelled images of the domain, uint8 [N, 3, S, S], set the ranges of activations. Operations
    that take little time compute in float32, since they would add as much to the errors as the
    rest: products within attention, and with weights in 16 bits the first convolution, depthwise
    ones and products of one row per image, such as in the last block and the projector. The product
    with the class vectors and the score of being none of the classes have float32 weights too: the
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

    class CalibrationBatches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
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
        # fold slices of weights, and infer shapes
        quant_pre_process(plain, folded, skip_symbolic_shape=True)
        graph = onnx.load(folded).graph
        rare, frequent = _rare_and_frequent(graph)
        quantize_static(
            folded,
            path,
            CalibrationBatches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", *_PRODUCTS],
            nodes_to_quantize=frequent,
            per_channel=True,
            # 7 of 8 bits: without VNNI the sum of two 8-bit products overflows
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            # fill histograms one batch at a time
            extra_options={"CalibPercentile": _PERCENTILE, "CalibStridedMinMax": 1},
        )
    model = onnx.load(path)
    _store_in_16_bits(model.graph, rare)
    onnx.helper.set_model_props(model, metadata(classifier, input_type))
    onnx.save(model, path)


def _rare_and_frequent(graph: Any) -> tuple[list[str], list[str]]:
    """Return the names of nodes with weights, but for the heads: rare ones take little time."""
    weights, heads = {tensor.name: tensor for tensor in graph.initializer}, _heads(graph)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    first, *further = [node for node in graph.node if node.op_type == "Conv"]
    rare, frequent = [first.name], list[str]()
    for node in further:
        is_depthwise = weights[node.input[1]].dims[1] == 1
        (rare if is_depthwise else frequent).append(node.name)
    for node in graph.node:
        if node.op_type in _PRODUCTS and node.input[1] in weights and node.name not in heads:
            rows = shapes[node.input[0]][1:-1]
            (rare if all(size.dim_value == 1 for size in rows) else frequent).append(node.name)
    return rare, frequent


def _store_in_16_bits(graph: Any, names: list[str]) -> None:
    from onnx import TensorProto, helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    for name in [node.input[1] for node in graph.node if node.name in names]:
        half = _half(weights[name])
        graph.initializer.remove(weights[name])
        graph.initializer.append(half)
        graph.node.insert(0, helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))


def _half(weight: Any) -> Any:
    from onnx import numpy_helper

    values = numpy_helper.to_array(weight).astype(np.float16)
    return numpy_helper.from_array(values, f"{weight.name}_half")


def write_fp16_onnx(classifier: Classifier, input_type: InputType, path: Path) -> None:
    """Write ONNX whose products and convolutions, but for the heads, compute in float16."""
    import onnx
    from onnx import TensorProto, helper

    write_onnx(classifier, input_type, path)
    model = onnx.load(path)
    graph = model.graph
    weights, heads = {tensor.name: tensor for tensor in graph.initializer}, _heads(graph)

    # cast the inputs of products to float16, once each, and their outputs back
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

    # keep the initializers in use
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    for field, items in (("node", nodes), ("initializer", kept)):
        graph.ClearField(field)
        getattr(graph, field).extend(items)
    onnx.save(model, path)


def _heads(graph: Any) -> list[str]:
    """Return the names of the last products, such as of features and class vectors."""
    # from the outputs back to the first products
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
