"""Targets of several labels without a label: what the teacher sees in crops of each image.

A CLIP's feature of a whole image is mostly of its largest object; in a small crop there is often
one object alone. After the ideas of CCD (arXiv 2503.16873) and SPARC (arXiv 2502.16911).
"""

import json
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from kdpl.class_vectors import ClassVectors
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.names import digest_of
from kdpl.doubt.words import NEGATIVE_VECTORS_FILE
from kdpl.errors import ArtifactError, ConfigError
from kdpl.multilabel.task import MultiLabel
from kdpl.runtime.artifacts import read_tensors, write_tensors
from kdpl.runtime.messages import inform
from kdpl.runtime.resizing import Resizing
from kdpl.targets import Target
from kdpl.targets.inputs import TargetInputs
from kdpl.tasks import MULTI_CLASS

LOCAL_VIEWS_FILE = "local_views.safetensors"
"""The targets of all unlabelled images, in a run's folder."""

_KIND = "targets from local views"
_VERSION = 1


@dataclass(frozen=True)
class Crops:
    """Makes square crops of an image, on a grid for each scale.

    At scale 1 the only crop is the whole image under the evaluation transform. At scale s the edge
    of a crop is 1/s of the image's shorter edge, and neighbours are at most ``stride`` of that edge
    apart; the outermost ones touch the image's edges.

    Attributes:
        scales: The scales, at least 1.
        stride: Largest distance of neighbours, as a share of their edge.
        resizing: How the teacher takes images.
    """

    scales: tuple[float, ...]
    stride: float
    resizing: Resizing

    def __call__(self, image: Image) -> Tensor:
        """Make the V crops of an RGB image, uint8 [V, 3, S, S]."""
        boxes = self.boxes(image.width, image.height)
        crops = [image if box is None else image.crop(box) for box in boxes]
        return torch.stack([to_tensor(resize_and_crop(crop, self.resizing)) for crop in crops])

    def boxes(self, width: int, height: int) -> list[tuple[int, int, int, int] | None]:
        """Return left, top, right and bottom of each crop, pixels; None: the whole image."""
        found: list[tuple[int, int, int, int] | None] = []
        for scale in self.scales:
            if scale == 1:
                found.append(None)
                continue
            edge = max(1, round(min(width, height) / scale))
            for top in self._starts(height, edge):
                found += [
                    (left, top, left + edge, top + edge) for left in self._starts(width, edge)
                ]
        return found

    def _starts(self, length: int, edge: int) -> list[int]:
        steps = int(np.ceil((length - edge) / max(1.0, self.stride * edge)))
        return np.rint(np.linspace(0, length - edge, steps + 1)).astype(int).tolist()


@dataclass(eq=False)
class LocalViews(Target):
    """Log odds of the classes of an image, from the teacher's predictions for crops of it.

    The teacher predicts for each crop one of the classes or, if its folder has negative vectors, a
    word for something else. What is found of a class, s = Σ_v p_v², counts sure crops more than
    many unsure ones. Its logarithm is standardised by class over the pool, since a CLIP prefers
    some names wherever it looks, and the image has the class with probability
    σ(sharpness · (z − margin)), but not less than ``floor`` nor more than 1 − ``floor``.

    The targets are made before the first step and written to ``local_views.safetensors`` in the
    run's folder, from where they are read when the run is resumed.

    Attributes:
        scales: Image edges over crop edges; 1 is the whole image.
        stride: Largest distance of neighbouring crops, as a share of their edge.
        sharpness: Steepness of the probability over standardised scores.
        margin: Standardised score whose probability is one half.
        floor: Least probability that an image has a class, or that it does not.
    """

    scales: tuple[float, ...] = (1, 3, 4)
    stride: float = 1 / 3
    sharpness: float = 2.0
    margin: float = 0.5
    floor: float = 0.01

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 1:
            raise ConfigError(
                f"scales of local views are {list(self.scales)}, expected numbers of at least 1: "
                "set [1, 3, 4]"
            )
        if not 0 < self.stride <= 1:
            raise ConfigError(
                f"stride of local views must be above 0 and at most 1, not {self.stride}: set 0.33"
            )
        if not 0 < self.floor < 0.5:
            raise ConfigError(
                f"floor of local views must be above 0 and below 0.5, not {self.floor}: set 0.01"
            )
        self._rows, self._log_odds = torch.empty(0), torch.empty(0)

    @property
    def uses_teacher(self) -> bool:
        """False: all is known before the first step."""
        return False

    def logits(self, predicted: Tensor, indices: Tensor) -> Tensor:
        """Return log odds of the target [B, C]; a ConfigError before ``prepare``."""
        if not len(self._rows):
            raise ConfigError(
                "the targets of local views are not there: fit the student by its command, "
                "which makes them"
            )
        return self._log_odds[self._rows[indices]]

    def prepare(self, inputs: TargetInputs) -> None:
        """Look at the crops, or read earlier results.

        Raises:
            ArtifactError: These are of other data or settings.
            ConfigError: Images have one label each.
        """
        if inputs.teachers[0].task != MultiLabel.name:
            raise ConfigError(
                "the target local_views is for images of several labels, and these have one each: "
                "set label_separator, or another target"
            )
        file = inputs.folder / LOCAL_VIEWS_FILE
        needed = {
            "teacher": inputs.teachers[0].teacher,
            "class_names": list(inputs.class_names),
            "pool": digest_of(inputs.pool),
            "settings": json.loads(json.dumps(asdict(self))),
        }
        images = torch.from_numpy(np.asarray(inputs.indices)).long()
        if not file.is_file():
            log_odds = self._make(inputs)
            tensors = {"images": images, "log_odds": log_odds}
            inputs.on_first_process(lambda: write_tensors(file, _KIND, _VERSION, tensors, needed))
        remedy = "remove it, and run the same command again"
        tensors, fields = read_tensors(file, _KIND, _VERSION, remedy)
        other = next((name for name in needed if fields.get(name) != needed[name]), None)
        if other is None and not tensors["images"].equal(images):
            other = "images"
        if other is not None:
            raise ArtifactError(
                f"{file} was made for other {other.replace('_', ' ')}: remove it, or choose "
                "another --out"
            )
        rows = torch.full((int(images.max()) + 1,), -1)
        rows[images] = torch.arange(len(images))
        self._rows = rows.to(inputs.device)
        self._log_odds = tensors["log_odds"].to(inputs.device)

    def _make(self, inputs: TargetInputs) -> Tensor:
        """Return the log odds of the pool's images, float32 [N, C]."""
        vectors = inputs.teachers[0]
        negatives = _negative_vectors(inputs, vectors)
        crops = Crops(self.scales, self.stride, vectors.preprocessing.resizing)
        inform(
            f"looking at crops of {len(inputs.indices)} images, with {len(negatives)} words for "
            "other things"
        )
        texts = vectors.logit_scale * torch.cat([vectors.vectors, negatives]).to(inputs.device)
        count = len(vectors.vectors)
        scores = inputs.crops(crops, lambda features: pooled(features, texts, count))
        return self.log_odds(scores).cpu()

    def log_odds(self, scores: Tensor) -> Tensor:
        """Return the log odds of an image's classes from its scores among the pool's, [N, C]."""
        odds = self.sharpness * (standardized(scores) - self.margin)
        limit = float(np.log((1 - self.floor) / self.floor))
        return odds.clamp(-limit, limit)


def pooled(features: Tensor, texts: Tensor, classes: int) -> Tensor:
    """Return what is found of each class in an image, float [C].

    Args:
        features: Normalised features of its crops, float [V, D].
        texts: Vectors of the classes and then of other things, times the teacher's scale, [M, D].
        classes: The number C of classes.
    """
    # a crop shows one thing, or none of the classes
    probabilities = MULTI_CLASS.probabilities(features @ texts.T)[:, :classes]
    return probabilities.square().sum(dim=0)


def standardized(scores: Tensor) -> Tensor:
    """Return the logarithms of scores [N, C] with mean 0 and variance 1 by class, float32.

    The images' order does not matter, to the last bit.
    """
    logs = scores.double().clamp_min(1e-6).log()
    ordered = logs.sort(dim=0).values
    spread = ordered.std(dim=0, correction=0).clamp_min(1e-6)
    return ((logs - ordered.mean(dim=0)) / spread).float()


def _negative_vectors(inputs: TargetInputs, vectors: ClassVectors) -> Tensor:
    """Return the vectors of words for other things, of the first teacher, [M, D]; M may be 0."""
    file = inputs.teacher_folder / NEGATIVE_VECTORS_FILE
    if not file.is_file():
        return vectors.vectors[:0]
    negatives = ClassVectors.load(file)
    vectors.require_teacher(negatives)
    return negatives.vectors
