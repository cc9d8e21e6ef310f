"""The formats of exported files; they are entry points of ``kdpl.formats``."""

from functools import partial

import torch

from kdpl.formats.format import Format
from kdpl.formats.onnx_files import load_onnx, write_half_onnx, write_int8_onnx, write_onnx
from kdpl.formats.runtime_files import (
    load_executorch,
    load_openvino,
    load_program,
    write_executorch,
    write_openvino,
    write_program,
)

_ONNX = dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export")
_OPENVINO = _ONNX | {"openvino": "openvino"}
_HALF = partial(write_half_onnx, dtype=torch.float16)
_BFLOAT16 = partial(write_half_onnx, dtype=torch.bfloat16)

ONNX = Format(".onnx", write_onnx, load_onnx, _ONNX)
ONNX_FP16 = Format(".onnx", _HALF, load_onnx, _ONNX, rounded=True)
# onnxruntime has no bfloat16 products on a CPU
ONNX_BF16 = Format(".onnx", _BFLOAT16, load_openvino, _OPENVINO, rounded=True)
ONNX_INT8 = Format(".onnx", write_int8_onnx, load_onnx, _ONNX, rounded=True, calibrated=True)
OPENVINO = Format("", write_openvino, load_openvino, _OPENVINO)
EXECUTORCH = Format(".pte", write_executorch, load_executorch, {"executorch": "executorch"})
TORCH = Format(".pt2", write_program, load_program, {})
