"""Does an exported file answer as the classifier that it was made of?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdpl.classifier import Classifier
from kdpl.deploy.export.graph import INPUT, InputType, as_input

_BATCH = 64


@dataclass(frozen=True)
class Difference:
    """How far a file's answers are from the classifier's.

    Attributes:
        images: Images that were compared.
        same: For how many of them the first guess is the same.
        logits: Largest absolute difference of a logit.
    """

    images: int
    same: int
    logits: float

    @property
    def agreement(self) -> float:
        """Share of the images with the same first guess."""
        return self.same / self.images

    def __str__(self) -> str:
        return (
            f"the same first guess for {self.same} of {self.images} images ({self.agreement:.1%}), "
            f"logits off by at most {self.logits:.1e}"
        )


@torch.inference_mode()
def compare(classifier: Classifier, path: Path, images: Tensor, input_type: InputType) -> Difference:
    """Run an exported file and the classifier on images, uint8 [N, 3, S, S], N at least 1."""
    run = _program(path) if path.suffix == ".pt2" else _session(path)
    same, largest = 0, 0.0
    for batch in torch.split(images, _BATCH):
        expected, got = classifier(batch), run(as_input(batch, input_type))
        same += int((expected.argmax(dim=1) == got.argmax(dim=1)).sum())
        largest = max(largest, (expected - got).abs().max().item())
    return Difference(len(images), same, largest)


def _program(path: Path) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(path).module()
    return lambda images: module(images)[0]


def _session(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])
