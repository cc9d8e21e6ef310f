"""What is exported: images in, logits and probabilities out, with everything between them inside."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim

from kdpl import __version__
from kdpl.classifier import Classifier

InputType = Literal["uint8", "float"]
"""Images as bytes 0..255, or as float32 in [0, 1]; normalised inside either way."""

INPUT = "images"
OUTPUTS = ("logits", "probabilities")

METADATA_FILE = "kdpl.json"
"""Name of the file with the metadata within a program of torch.export."""


class _Graph(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classifier(images)
        return logits, logits.softmax(dim=1)


def as_input(images: Tensor, input_type: InputType) -> Tensor:
    """Turn images, uint8 [B, 3, S, S], into what a file with this kind of input takes."""
    return images if input_type == "uint8" else images.float() / 255


def metadata(classifier: Classifier, input_type: InputType) -> dict[str, str]:
    """Say how the file is used: what an image must look like, and which class each logit stands for."""
    size = classifier.preprocessing.image_size
    values = {
        "class_names": list(classifier.class_names),
        "image_size": size,
        "resize": f"the shorter edge to {size}, bicubic with antialiasing as Pillow does it",
        "crop": f"the square of {size} in the centre",
        "input": "RGB, [batch, 3, image_size, image_size], "
        + ("uint8 in 0..255" if input_type == "uint8" else "float32 in 0..1"),
        "logit_scale": classifier.logit_scale,
        "kdpl_version": __version__,
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def write_program(classifier: Classifier, input_type: InputType, path: Path) -> None:
    """Write a program of torch.export (.pt2) for any batch size."""
    with quiet():
        program = torch.export.export(**_arguments(classifier, input_type))
        note = json.dumps(metadata(classifier, input_type), indent=2)
        torch.export.save(program, path, extra_files={METADATA_FILE: note})


def write_onnx(classifier: Classifier, input_type: InputType, path: Path) -> None:
    """Write ONNX in float32 for any batch size."""
    import onnx

    arguments = _arguments(classifier, input_type)
    with quiet():
        program = torch.onnx.export(
            arguments["mod"],
            arguments["args"],
            dynamic_shapes=arguments["dynamic_shapes"],
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            # the older exporter cannot do a frozen transformer in evaluation mode
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise AssertionError("the exporter gives a program where no file is named")
    model = program.model_proto
    # the exporter notes with each node where in whose files it came from
    for part in (model.graph.node, model.graph.input, model.graph.output, model.graph.value_info):
        for each in part:
            each.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata(classifier, input_type))
    onnx.save(model, path)


def _arguments(classifier: Classifier, input_type: InputType) -> dict[str, Any]:
    size = classifier.preprocessing.image_size
    # a batch of one would be taken for a constant
    example = as_input(torch.zeros(2, 3, size, size, dtype=torch.uint8), input_type)
    return {
        "mod": _Graph(classifier).eval(),
        "args": (example,),
        "dynamic_shapes": {INPUT: {0: Dim("batch")}},
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what exporters and quantisers tell of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
