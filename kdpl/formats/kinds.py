"""The formats beside plain ONNX; they are entry points of ``kdpl.formats``."""

from kdpl.classifier.formats import ONNX_EXTRAS, Format, load_onnx
from kdpl.formats.onnx_files import write_fp16_onnx, write_int8_onnx
from kdpl.formats.runtime_files import (
    load_executorch,
    load_openvino,
    load_program,
    write_executorch,
    write_openvino,
    write_program,
)

_OPENVINO = ONNX_EXTRAS | {"openvino": "openvino"}

ONNX_FP16 = Format(".onnx", write_fp16_onnx, load_onnx, ONNX_EXTRAS, rounded=True)
ONNX_INT8 = Format(".onnx", write_int8_onnx, load_onnx, ONNX_EXTRAS, rounded=True, calibrated=True)
OPENVINO = Format("", write_openvino, load_openvino, _OPENVINO)
EXECUTORCH = Format(".pte", write_executorch, load_executorch, {"executorch": "executorch"})
TORCH = Format(".pt2", write_program, load_program, {})
