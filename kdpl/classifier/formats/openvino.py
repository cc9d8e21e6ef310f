"""Files of OpenVINO."""

import json
import tempfile
from pathlib import Path

import torch

from kdpl.classifier import Classifier
from kdpl.classifier.export import ExportedModel, InputType, metadata
from kdpl.classifier.formats.onnx import ONNX_EXTRAS, Format, write_onnx

OPENVINO_FILE = "classifier.xml"
"""Graph in the folder of OpenVINO, next to the weights (.bin).

Its runtime info ``kdpl`` holds the metadata as JSON.
"""


def write_openvino(classifier: Classifier, input_type: InputType, folder: Path) -> None:
    """Write a folder with OpenVINO's IR in float32, for any batch size."""
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        # not by openvino.convert_model: it reports usage to its developers
        plain = Path(scratch) / "float.onnx"
        write_onnx(classifier, input_type, plain)
        model = openvino.Core().read_model(plain)
        model.set_rt_info(json.dumps(metadata(classifier, input_type)), ["kdpl"])
        folder.mkdir()
        openvino.save_model(model, folder / OPENVINO_FILE, compress_to_fp16=False)


def load_openvino(path: Path) -> ExportedModel:
    """Read a folder of OpenVINO; computes in float32."""
    import openvino

    # without the hint, processors with bfloat16 use it
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    run = openvino.Core().compile_model(path / OPENVINO_FILE, "CPU", hints)
    return lambda images: [torch.from_numpy(output) for output in run(images.numpy()).to_tuple()]


OPENVINO = Format("", write_openvino, load_openvino, ONNX_EXTRAS | {"openvino": "openvino"})
