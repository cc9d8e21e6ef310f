"""Class vectors, the artifact between the stages, and their encoder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import torch
from pydantic import Discriminator, Field, Tag, TypeAdapter
from torch import Tensor

from kdpl.clip.identity import TeacherSettings
from kdpl.clip.modules import CosineHead
from kdpl.errors import ArtifactError
from kdpl.runtime.artifacts import Text, metadata, parse_metadata, read_tensors, write_tensors
from kdpl.runtime.class_names import ClassName, ClassText, composed
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, PROMPTS_FILE
from kdpl.tasks import MULTI_CLASS, ClassScaling

if TYPE_CHECKING:
    from kdpl.prompts.tuned import TunedPrompts

KIND = "class vectors"
VERSION = 1

LINEAR_PROBE = "linear probe"
"""In place of a teacher's fingerprint where the vectors are a probe's weights."""

_REMEDY = "run stage 1 again, or give the class_vectors.safetensors of a teacher's run folder"


_IF_GIVEN = Field(exclude_if=lambda value: value is None)

_Texts = Annotated[
    Annotated[Text, Tag("text")] | Annotated[tuple[Text, ...], Field(min_length=1), Tag("texts")],
    Discriminator(lambda value: "texts" if isinstance(value, list | tuple) else "text"),
]


@metadata
class VectorSettings(TeacherSettings):
    """The metadata of class vectors.

    ``teacher`` is the fingerprint of prompts and CLIP, as in ``TunedPrompts``, not of the vectors.
    """

    class_names: Annotated[tuple[ClassName, ...], Field(min_length=1)]  # by label
    # number of base classes, which come first; None without a base/novel split
    num_base: Annotated[int, Field(ge=0, lt=2**31)] | None
    teacher: Text
    # input of the text tower, one or several texts for each class; None: the class names
    class_texts: tuple[_Texts, ...] | None = None
    # task of the labels; scale and bias of each class's logit if classes are decided independently
    task: Annotated[Text, Field(exclude_if=lambda name: name == MULTI_CLASS.name)] = (
        MULTI_CLASS.name
    )
    scales: Annotated[tuple[float, ...] | None, _IF_GIVEN] = None
    biases: Annotated[tuple[float, ...] | None, _IF_GIVEN] = None


@metadata
class ClassVectors(VectorSettings):
    """The tuned teacher's text features, L2-normalised float32 [C, D], and their metadata."""

    vectors: Tensor

    @property
    def texts(self) -> tuple[ClassText, ...]:
        """Input of the text tower for each class: its text or texts, or its name."""
        return self.class_texts or self.class_names

    def head(self) -> CosineHead:
        """Return the head that maps features to logits, with scales and biases if there are any."""
        if self.scales is None or self.biases is None:
            return CosineHead(self.vectors)
        return CosineHead(self.vectors, torch.tensor(self.scales), torch.tensor(self.biases))

    def scaling(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return scales and biases of the classes, 1 and 0 without any."""
        count = len(self.class_names)
        return self.scales or (1.0,) * count, self.biases or (0.0,) * count

    def of_task(self, task: str, scaling: ClassScaling | None) -> "ClassVectors":
        """Return the same class vectors for a task, by name, with its scales and biases if any."""
        if scaling is None:
            return replace(self, task=task)
        scales, biases = (tuple(values.detach().cpu().tolist()) for values in scaling.values())
        return replace(self, task=task, scales=scales, biases=biases)

    @classmethod
    def of(
        cls,
        prompts: "TunedPrompts",
        vectors: Tensor,
        class_names: Sequence[str],
        num_base: int | None,
        class_texts: Sequence[ClassText] | None = None,
    ) -> "ClassVectors":
        """Combine vectors [C, D] of names, or of texts for them, with their teacher's metadata."""
        names, texts = tuple(class_names), None if class_texts is None else tuple(class_texts)
        return cls(
            **{name: getattr(prompts, name) for name in TeacherSettings.__dataclass_fields__},
            vectors=vectors,
            class_names=names,
            num_base=num_base,
            teacher=prompts.teacher,
            class_texts=texts if texts != names else None,
        )

    def fields(self) -> dict[str, Any]:
        """Return the metadata as JSON values."""
        return cast(dict[str, Any], TypeAdapter(VectorSettings).dump_python(self, mode="json"))

    def digest(self) -> str:
        """Return the digest of vectors and metadata."""
        from kdpl.runtime.origin import digest  # for what is trained with them

        fields = json.dumps(self.fields(), sort_keys=True)
        return digest([fields, self.vectors.cpu().numpy().tobytes()])

    @classmethod
    def from_fields(
        cls, vectors: Tensor, fields: Mapping[str, Any], source: str, remedy: str = _REMEDY
    ) -> "ClassVectors":
        """Restore class vectors from vectors [C, D] and the result of ``fields``.

        Raises an ArtifactError if they do not fit.
        """
        settings = parse_metadata(VectorSettings, fields, source, remedy)
        restored = cls(vectors=vectors, **vars(settings))
        count = len(restored.class_names)
        # one float32 row for each class
        if (
            vectors.dtype != torch.float32
            or vectors.ndim != 2
            or {count, len(restored.texts)} != {len(vectors)}
        ):
            raise ArtifactError(
                f"{source} holds class vectors of type {vectors.dtype} and shape "
                f"{tuple(vectors.shape)} for "
                f"{count} class names, expected float32 [{count}, D]: {remedy}"
            )
        # metadata for the same number of classes
        counts = {len(v) for v in (restored.scales, restored.biases) if v is not None}
        if counts - {count} or (restored.num_base or 0) > count:
            raise ArtifactError(
                f"{source} has scales, biases or base classes that do not fit its {count} classes: "
                f"{remedy}"
            )
        # unit vectors
        if not torch.allclose(
            vectors.norm(dim=1), torch.ones(count, device=vectors.device), atol=1e-3
        ):
            raise ArtifactError(f"{source} holds class vectors that are not normalised: {remedy}")
        return restored

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        write_tensors(path, KIND, VERSION, {"class_vectors": self.vectors}, self.fields())

    @classmethod
    def of_teacher(cls, folder: str, file: str | None = None) -> "ClassVectors":
        """Read the class vectors of a teacher's run, or another file; errors as in ``load``."""
        return cls.load(file or Path(folder) / CLASS_VECTORS_FILE)

    @classmethod
    def load(cls, path: str | Path) -> "ClassVectors":
        """Read the file; an ArtifactError if it is missing, damaged, or another version or kind."""
        path = Path(path)
        tensors, fields = read_tensors(path, KIND, VERSION, _REMEDY)
        if "class_vectors" not in tensors:
            raise ArtifactError(f"{path} has no tensor named class_vectors: {_REMEDY}")
        return cls.from_fields(tensors["class_vectors"], fields, str(path))

    def require_teacher(self, other: "ClassVectors | TunedPrompts") -> None:
        """Raise an ArtifactError unless ``other`` has the same teacher."""
        if (other.teacher, other.clip.fingerprint) != (self.teacher, self.clip.fingerprint):
            raise ArtifactError(
                "the class vectors to add were made by another tuned teacher than the class "
                "vectors of the classifier: make them with the teacher that it was distilled from"
            )

    def require_task(self, task: str, source: str) -> None:
        """Raise an ArtifactError, naming ``source``, if the data has another task."""
        if task != self.task:
            raise ArtifactError(
                f"the class vectors of {source} are for {self.task} labels, but the labels of "
                f"the data are {task}: run stage 1 on the same data, with the same "
                "classes.label_separator"
            )

    def require_names(self, class_names: Sequence[str], source: str) -> None:
        """Raise an ArtifactError, naming ``source``, if the data has other classes or order."""
        expected, names = self.class_names, tuple(map(composed, class_names))
        if names == expected:
            return
        # the message names the first class that differs, or the numbers of classes
        difference = f"it has {len(expected)} classes, the data has {len(names)}"
        if len(names) == len(expected):
            label = next(i for i, name in enumerate(expected) if name != names[i])
            first, second = expected[label], names[label]
            difference = f"class {label} is {first!r} there and {second!r} in the data"
        raise ArtifactError(
            f"the class vectors of {source} are for other class names ({difference}): "
            "freeze class vectors for this data by running stage 1 on it"
        )


class NameEncoder:
    """The text half of a tuned teacher: encodes class names into class vectors."""

    def __init__(self, prompts: "TunedPrompts") -> None:
        self.prompts = prompts
        self._clip = prompts.load_clip()
        self._method = prompts.build_method(self._clip)

    @classmethod
    def load(cls, run: str | Path) -> "NameEncoder":
        """Load the teacher of a run's folder; a KdplError if it is missing or does not fit."""
        # imports both towers, of which a classifier needs neither
        from kdpl.prompts.tuned import TunedPrompts

        return cls(TunedPrompts.load(Path(run) / PROMPTS_FILE))

    def encode(
        self,
        names: Sequence[str],
        num_base: int | None = None,
        texts: Sequence[ClassText] | None = None,
    ) -> ClassVectors:
        """Encode names, by label, or the texts that stand for them."""
        inputs: Sequence[ClassText] = names if texts is None else texts
        vectors = self._method.encode_names(inputs, self._clip.text_tower, self._clip.tokenize)
        return ClassVectors.of(self.prompts, vectors, names, num_base, texts)
