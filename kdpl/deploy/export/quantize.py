"""8-bit ONNX: weights by channel, activations by what unlabelled images of the domain make of them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpl.classifier import Classifier
from kdpl.deploy.export.graph import INPUT, OUTPUTS, InputType, as_input, metadata, quiet, write_onnx

_BATCH = 16


def write_int8_onnx(classifier: Classifier, input_type: InputType, path: Path, images: Tensor) -> None:
    """Write ONNX whose matrix products and convolutions compute with 8 bits.

    The product with the class vectors stays in float32: the logit scale would make its rounding a hundred times larger.

    Args:
        classifier: The classifier.
        input_type: What the file takes.
        path: The file.
        images: Unlabelled images of the domain, uint8 [N, 3, S, S]; ranges of activations are taken from them.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(torch.split(images, _BATCH))

        def get_next(self) -> dict[str, object] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: as_input(batch, input_type).numpy()}

    with tempfile.TemporaryDirectory() as scratch, quiet():
        whole = Path(scratch) / "float.onnx"
        write_onnx(classifier, input_type, whole)
        quantize_static(
            whole,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            # 7 of 8 bits: on processors without VNNI sums of two products of 8 bits overflow
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[_product_with_class_vectors(onnx.load(whole).graph)],
        )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata(classifier, input_type))
    onnx.save(model, path)


def _product_with_class_vectors(graph: Any) -> str:  # noqa: ANN401
    return str(next(node.name for node in graph.node if OUTPUTS[0] in node.output))
