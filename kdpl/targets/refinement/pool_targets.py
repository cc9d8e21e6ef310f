"""Assignments of the unlabelled images to classes, as a file in a run's folder."""

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from torch import Tensor

from kdpl.errors import ArtifactError
from kdpl.runtime.artifacts import Text, metadata, parse_metadata, read_tensors, write_tensors
from kdpl.runtime.class_names import ClassName

POOL_TARGETS_FILE = "pool_targets.safetensors"
POOL_TABLE = "pool_targets.csv"
KIND = "pool targets"
VERSION = 2

_REMEDY = "remove it, and run the same command again"


class Moved(NamedTuple):
    """Index of an unlabelled image, and its class before and after, by teacher and assignment."""

    image: int
    before: int
    after: int


@metadata
class PoolManifest:
    """Inputs of a pool's assignments, and the decision to use them with its reason.

    Attributes:
        made_from: See ``TargetInputs.origin``, with the settings of the refinement.
        class_names: The names of the classes, by label.
        taken: True if the target is the assignments; false if it is the teacher's predictions,
            which then are the ``assignments`` of the file.
        reason: Reason for the decision.
        accuracy: Accuracies of teacher and assignments on labelled images that neither saw; None
            without such images.
        before: Number of images per class by the teacher.
        after: Number of images per class by the assignments.
        moved: Number of images whose class changed.
        examples: Some of the moved images, spread over the pool.
    """

    made_from: dict[str, Any]
    class_names: tuple[ClassName, ...]
    taken: bool
    reason: Text
    accuracy: tuple[float, float] | None
    before: tuple[int, ...]
    after: tuple[int, ...]
    moved: int
    examples: tuple[Moved, ...]


@metadata
class PoolTargets(PoolManifest):
    """Indices of unlabelled images in the pool, int64 [N]; class probabilities, float16 [N, C]."""

    images: Tensor
    assignments: Tensor

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        tensors = {"images": self.images, "assignments": self.assignments.half()}
        fields = TypeAdapter(PoolManifest).dump_python(self, mode="json")
        write_tensors(path, KIND, VERSION, tensors, fields)

    @classmethod
    def load(cls, path: Path) -> "PoolTargets":
        """Read the file; ArtifactError if missing, damaged, or of another version or kind."""
        tensors, fields = read_tensors(path, KIND, VERSION, _REMEDY)
        manifest = parse_metadata(PoolManifest, fields, str(path), _REMEDY)
        size = tensors["images"].numel() if "images" in tensors else 0
        expected = {"images": (size,), "assignments": (size, len(manifest.class_names))}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != expected:
            raise ArtifactError(f"{path} is damaged (it has tensors of {shapes}): {_REMEDY}")
        images, assignments = (tensors[name] for name in expected)
        return cls(images=images, assignments=assignments, **vars(manifest))
