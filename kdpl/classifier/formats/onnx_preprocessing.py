"""Preprocessing inside an ONNX file, which then takes bytes of any size."""

from pathlib import Path

from kdpl.classifier import Classifier
from kdpl.classifier.export import INPUT
from kdpl.data.augmentation import LONGEST
from kdpl.runtime.resizing import Resizing

_MODES = {"bicubic": "cubic", "bilinear": "linear"}


def preprocess_inside(classifier: Classifier, path: Path) -> None:
    """Let an ONNX file for prepared bytes take uint8 [batch, height, width, 3] of any size."""
    import onnx
    from onnx import compose, helper, parser

    model = onnx.load(path)
    graph = model.graph
    before = parser.parse_graph(_resize_and_crop(classifier.preprocessing.resizing))
    compose.add_prefix_graph(
        before, "preprocess_", rename_nodes=False, rename_inputs=False, inplace=True
    )
    for node in graph.node:
        node.input[:] = [before.output[0].name if name == INPUT else name for name in node.input]
    for node in before.node:
        # onnxruntime 1.21 fuses nodes under names of its own, and refuses a name it has twice
        node.name = node.output[0]
    nodes = [*before.node, *graph.node]
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.initializer.extend(before.initializer)
    graph.input[0].CopyFrom(before.input[0])
    metadata = {item.key: item.value for item in model.metadata_props}
    metadata["input"] = "RGB, [batch, height, width, 3] of any size, uint8 in 0..255"
    metadata |= dict.fromkeys(("resize", "crop"), "inside the file")
    helper.set_model_props(model, metadata)
    onnx.save(model, path)


def _resize_and_crop(to: Resizing) -> str:
    """Return the graph of ``resize_and_crop`` as text."""
    edge, size, mode = to.edge, to.image_size, _MODES[to.interpolation]
    sides = "image = Identity(channels) sides = Identity(edge)"
    if to.resize_mode == "shortest":
        # without the ends of an image of, say, 20,000 x 1 pixels, which would exhaust the memory
        sides = f"""most = Constant<value_int={LONGEST}>()
        short = ReduceMin(edges)
        longest = Mul(short, most)
        kept = Min(edges, longest)
        image = CenterCropPad<axes=[2, 3]>(channels, kept)
        scaled = Mul(kept, edge)
        sides = Div(scaled, short)"""
    # sizes are of all axes, as onnxruntime 1.32 does not load bilinear resizing of two
    return f"""preprocess
    (uint8[batch, height, width, 3] {INPUT}) => (uint8[batch, 3, {size}, {size}] prepared)
    <int64[2] edge = {{{edge}, {edge}}}, int64[2] size = {{{size}, {size}}},
     int64[2] axes = {{2, 3}}, int64 zero = {{0}}, float two = {{2}}> {{
        channels = Transpose<perm=[0, 3, 1, 2]>({INPUT})
        edges = Shape<start=1, end=3>({INPUT})
        {sides}
        first = Shape<end=2>(channels)
        sizes = Concat<axis=0>(first, sides)
        resized = Resize<mode="{mode}", antialias=1, cubic_coeff_a=-0.5, exclude_outside=1>
            (image, , , sizes)
        beyond = Sub(sides, size)
        fraction = Cast<to=1>(beyond)
        half = Div(fraction, two)
        rounded = Round(half)
        whole = Cast<to=7>(rounded)
        start = Max(whole, zero)
        end = Add(start, size)
        square = Slice(resized, start, end, axes)
        prepared = CenterCropPad<axes=[2, 3]>(square, size)
    }}"""
