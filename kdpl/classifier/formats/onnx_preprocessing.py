"""Preprocessing inside an ONNX file: takes bytes of any size, and resizes as Pillow does.

Pixels are the same to the bit, except in squashed images more than 100 times as tall as wide, of
which Pillow resizes the other axis first.

Resizing with antialiasing is a product with a matrix of the filter's weights, once per axis. Pillow
rounds weights to multiples of 2⁻²² and pixels to bytes after each pass, while the operator Resize
rounds neither. Products of bytes with the three bytes of a weight are exact, and need little
memory for large images.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdpl.classifier import Classifier
from kdpl.classifier.export import INPUT
from kdpl.data.augmentation import LONGEST
from kdpl.runtime.resizing import Resizing

_PREPARED = "prepared"
_DOUBLE, _INT64, _UINT8 = 11, 7, 2  # types of TensorProto
_ONE = 1 << 22  # a weight of 1 in Pillow
_MIDDLE = 1 << 23  # added to weights, so that their bytes are positive


def preprocess_inside(classifier: Classifier, path: Path) -> None:
    """Let an ONNX file for prepared bytes take uint8 [batch, height, width, 3] of any size."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path)
    graph = model.graph
    for node in graph.node:
        node.input[:] = [_PREPARED if name == INPUT else name for name in node.input]
    before = _Nodes()
    before.Identity(_prepare(before, classifier.preprocessing.resizing), output=_PREPARED)
    nodes = [*before.nodes, *graph.node]
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.initializer.extend(before.constants)
    graph.input[0].CopyFrom(
        helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", "height", "width", 3])
    )
    metadata = {item.key: item.value for item in model.metadata_props}
    metadata["input"] = "RGB, [batch, height, width, 3] of any size, uint8 in 0..255"
    metadata |= dict.fromkeys(("resize", "crop"), "inside the file")
    helper.set_model_props(model, metadata)
    onnx.save(model, path)


class _Nodes:
    """Nodes of a graph; ``nodes.Add(a, 0.5)`` appends one and returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __getattr__(self, operator: str) -> Callable[..., str]:
        from onnx import helper, numpy_helper

        def append(*inputs: Any, output: str = "", **attributes: Any) -> str:
            names = []
            for value in inputs:
                if not isinstance(value, str):
                    name = f"preprocess_constant_{len(self.constants)}"
                    self.constants.append(numpy_helper.from_array(np.asarray(value), name))
                    value = name
                names.append(value)
            output = output or f"preprocess_{len(self.nodes)}"
            # onnxruntime 1.21 fuses nodes under names of their own, and refuses a name it has twice
            self.nodes.append(helper.make_node(operator, names, [output], output, **attributes))
            return output

        return append


def _prepare(op: _Nodes, to: Resizing) -> str:
    """Add the nodes of ``resize_and_crop``; returns uint8 [batch, 3, S, S]."""
    # the edges to resize, without the ends of an image of, say, 20,000 x 1 pixels, and their sizes
    edges = op.Shape(INPUT, start=1, end=3)
    kept, sides = edges, op.Add(op.Sub(edges, edges), to.edge)
    if to.resize_mode == "shortest":
        short = op.ReduceMin(edges)
        kept = op.Min(edges, op.Mul(short, LONGEST))
        sides = op.Div(op.Mul(kept, to.edge), short)

    # the first pixel that is kept, and the first of the resized image that is in the crop
    pixels, resized = op.Cast(kept, to=_DOUBLE), op.Cast(sides, to=_DOUBLE)
    cut = op.Round(op.Mul(op.Sub(op.Cast(edges, to=_DOUBLE), pixels), 0.5))
    beyond = op.Mul(op.Sub(resized, float(to.image_size)), 0.5)
    start = op.Where(op.Less(beyond, 0.0), op.Ceil(beyond), op.Round(beyond))

    # resize the width, then the height, which is the last axis in turn
    image = op.Transpose(INPUT, perm=[0, 3, 1, 2])
    for axis in (1, 0):
        numbers = [op.Gather(name, axis) for name in (cut, pixels, start, resized)]
        length = op.Cast(op.Gather(edges, axis), to=_DOUBLE)
        image = _resample(op, image, _weights(op, to, length, *numbers))
        image = op.Transpose(image, perm=[0, 1, 3, 2])
    return image


def _weights(
    op: _Nodes, to: Resizing, length: str, cut: str, pixels: str, start: str, resized: str
) -> str:
    """Add weights of an axis as multiples of 2⁻²², int64 [length, S], zero outside the image."""
    # distances between the pixels of the image and of the square, in units of the filter
    source = op.Unsqueeze(op.Sub(op.Range(0.0, length, 1.0), cut), [1])
    target = op.Add(np.arange(float(to.image_size)), start)
    scale = op.Div(pixels, resized)
    center = op.Mul(op.Add(target, 0.5), scale)
    offset = op.Add(op.Sub(source, center), 0.5)
    x = op.Abs(op.Mul(offset, op.Reciprocal(op.Max(scale, 1.0))))

    # Pillow's filters
    if to.interpolation == "bilinear":
        weight = op.Max(op.Sub(1.0, x), 0.0)
    else:
        near = op.Add(op.Mul(op.Mul(op.Sub(op.Mul(x, 1.5), 2.5), x), x), 1.0)
        far = op.Sub(op.Mul(op.Add(op.Mul(op.Sub(x, 5.0), x), 8.0), x), 4.0)
        far = op.Where(op.Less(x, 2.0), op.Mul(far, -0.5), 0.0)
        weight = op.Where(op.Less(x, 1.0), near, far)

    # normalise them, and round half away from zero
    inside = op.And(op.GreaterOrEqual(target, 0.0), op.Less(target, resized))
    in_image = op.And(op.GreaterOrEqual(source, 0.0), op.Less(source, pixels))
    weight = op.Where(op.And(in_image, inside), weight, 0.0)
    total = op.Where(inside, op.ReduceSum(weight, [0], keepdims=1), 1.0)
    share = op.Mul(op.Div(weight, total), float(_ONE))
    return op.Cast(op.Add(share, op.Mul(op.Sign(share), 0.5)), to=_INT64)


def _resample(op: _Nodes, image: str, weights: str) -> str:
    """Add the product of bytes [..., length] and weights, rounded to bytes [..., S]."""
    digits, total = op.Add(weights, _MIDDLE), op.Identity(_ONE // 2)
    for power, middle in ((1, 0), (256, 0), (65536, _MIDDLE >> 16)):
        digit = op.Cast(op.Mod(op.Div(digits, power), 256), to=_UINT8)
        product = op.MatMulInteger(image, digit, np.uint8(0), np.uint8(middle))
        total = op.Add(total, op.Mul(op.Cast(product, to=_INT64), power))
    return op.Cast(op.Clip(op.Div(total, _ONE), 0, 255), to=_UINT8)
