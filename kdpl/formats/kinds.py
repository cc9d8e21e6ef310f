"""The formats beside plain ONNX; they are entry points of ``kdpl.formats``."""

from functools import partial

import torch

from kdpl.classifier.formats import ONNX_EXTRAS, Format, load_onnx
from kdpl.formats.onnx_files import write_half_onnx, write_int8_onnx
from kdpl.formats.runtime_files import (
    load_executorch,
    load_openvino,
    load_program,
    write_executorch,
    write_openvino,
    write_program,
)

_OPENVINO = ONNX_EXTRAS | {"openvino": "openvino"}
_HALF = partial(write_half_onnx, dtype=torch.float16)
_BFLOAT16 = partial(write_half_onnx, dtype=torch.bfloat16)

ONNX_FP16 = Format(".onnx", _HALF, load_onnx, ONNX_EXTRAS, rounded=True)
# onnxruntime has no bfloat16 products on a CPU
ONNX_BF16 = Format(".onnx", _BFLOAT16, load_openvino, _OPENVINO, rounded=True)
ONNX_INT8 = Format(".onnx", write_int8_onnx, load_onnx, ONNX_EXTRAS, rounded=True, calibrated=True)
OPENVINO = Format("", write_openvino, load_openvino, _OPENVINO)
EXECUTORCH = Format(".pte", write_executorch, load_executorch, {"executorch": "executorch"})
TORCH = Format(".pt2", write_program, load_program, {})
