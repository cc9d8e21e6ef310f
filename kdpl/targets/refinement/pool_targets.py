"""Assignments of the unlabelled images to classes, as a file in a run's folder."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pydantic.dataclasses
import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from kdpl.errors import ArtifactError
from kdpl.runtime.artifacts import STRICT, Text, parse_metadata, read_tensors, write_tensors
from kdpl.runtime.class_names import ClassName

POOL_TARGETS_FILE = "pool_targets.safetensors"
KIND = "pool targets"
VERSION = 2

MOST_CLASSES = 1000
"""Classes up to which all probabilities of an image are stored, and not the largest alone."""

_LARGEST = 32
_REMEDY = "remove it, and run the same command again"

Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[int, Field(ge=0)]


class Moved(NamedTuple):
    """Unlabelled image that is assigned to another class than the teacher's.

    Fields are its index among all unlabelled images, and both classes.
    """

    image: Number
    before: Number
    after: Number


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class PoolManifest:
    """Inputs of a pool's assignments, and the decision about them with its reason.

    Attributes:
        made_from: See ``TargetInputs.origin``, with the settings of the refinement.
        class_names: The names of the classes, by label.
        taken: Whether the target is the assignments; else the teacher's predictions were better.
        reason: Why they are taken or not.
        accuracy: Of teacher and assignments on labelled images that neither saw; None without such
            images.
        before: Images that the teacher predicts of each class.
        after: Images that are assigned to each class.
        moved: Number of images whose class changed.
        examples: Some of those, spread over the pool.
    """

    made_from: dict[str, Any]
    class_names: tuple[ClassName, ...]
    taken: bool
    reason: Text
    accuracy: tuple[Share, Share] | None
    before: tuple[int, ...]
    after: tuple[int, ...]
    moved: int
    examples: tuple[Moved, ...]


@pydantic.dataclasses.dataclass(
    frozen=True, kw_only=True, config={**STRICT, "arbitrary_types_allowed": True}
)
class PoolTargets(PoolManifest):
    """Assignments of unlabelled images.

    They are indices among all, int64 [N], and probabilities, float16 [N, C].
    """

    images: Tensor
    assignments: Tensor

    def save(self, path: Path) -> None:
        """Write the file atomically.

        Beyond 1,000 classes only the largest probabilities of each image are written.
        """
        tensors = {"images": self.images}
        if len(self.class_names) <= MOST_CLASSES:
            tensors["assignments"] = self.assignments.half()
        else:
            values, classes = self.assignments.topk(_LARGEST, dim=1)
            tensors |= {"values": values.half(), "classes": classes.int()}
        fields = TypeAdapter(PoolManifest).dump_python(self, mode="json")
        write_tensors(path, KIND, VERSION, tensors, fields)

    @classmethod
    def load(cls, path: Path) -> "PoolTargets":
        """Read the file; ArtifactError if missing, damaged, or of another version or kind."""
        tensors, fields = read_tensors(path, KIND, VERSION, _REMEDY)
        manifest = parse_metadata(PoolManifest, fields, str(path), _REMEDY)
        classes = len(manifest.class_names)
        try:
            images = tensors["images"].long()
            if "assignments" in tensors:
                assignments = tensors["assignments"]
            else:
                assignments = torch.zeros(len(images), classes, dtype=torch.float16)
                assignments.scatter_(1, tensors["classes"].long(), tensors["values"])
            if assignments.shape != (len(images), classes) or not assignments.isfinite().all():
                raise ValueError(f"it has assignments of shape {tuple(assignments.shape)}")
            if {len(manifest.before), len(manifest.after)} != {classes}:
                raise ValueError("it counts images of other classes")
            if any(max(each.before, each.after) >= classes for each in manifest.examples):
                raise ValueError("it has examples of other classes")
        except (KeyError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{path} is damaged ({error}): {_REMEDY}") from error
        return cls(images=images, assignments=assignments, **vars(manifest))
