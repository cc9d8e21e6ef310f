"""Files of other runtimes: OpenVINO, ExecuTorch and torch.export."""

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from kdpl.classifier import Classifier
from kdpl.classifier.export import ExportedModel, InputType, metadata, program, quiet
from kdpl.classifier.formats.onnx import ONNX_EXTRAS, Format, write_onnx

OPENVINO_FILE = "classifier.xml"
"""Graph in the folder of OpenVINO, next to the weights (.bin).

Its runtime info ``kdpl`` holds the metadata as JSON.
"""

METADATA_FILE = "kdpl.json"
"""Name of the metadata inside a program of torch.export."""

_METADATA_METHOD = "metadata"


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


def write_executorch(classifier: Classifier, input_type: InputType, path: Path) -> None:
    """Write an ExecuTorch program (.pte) for one image at a time.

    Products and convolutions run in XNNPACK. Its method ``metadata`` returns the metadata as JSON.
    """
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(
            program(classifier, input_type, batch=1),
            partitioner=[XnnpackPartitioner()],
            constant_methods={_METADATA_METHOD: json.dumps(metadata(classifier, input_type, "1"))},
        )
        path.write_bytes(lowered.to_executorch().buffer)


def load_executorch(path: Path) -> ExportedModel:
    """Read an ExecuTorch program."""
    from executorch.runtime import Runtime

    forward = Runtime.get().load_program(path).load_method("forward")

    def run(images: Tensor) -> list[Tensor]:
        # clone, as the next image overwrites the outputs
        outputs = [
            [output.clone() for output in forward.execute([image])]
            for image in torch.split(images, 1)
        ]
        return [torch.cat(batches) for batches in zip(*outputs, strict=True)]

    return run


def write_program(classifier: Classifier, input_type: InputType, path: Path) -> None:
    """Write a program of torch.export (.pt2) for any batch size."""
    note = json.dumps(metadata(classifier, input_type), indent=2)
    with quiet():
        torch.export.save(program(classifier, input_type), path, extra_files={METADATA_FILE: note})


def load_program(path: Path) -> ExportedModel:
    """Read a program of torch.export."""
    return torch.export.load(path).module()


OPENVINO = Format("", write_openvino, load_openvino, ONNX_EXTRAS | {"openvino": "openvino"})
EXECUTORCH = Format(".pte", write_executorch, load_executorch, {"executorch": "executorch"})
TORCH = Format(".pt2", write_program, load_program, {})
