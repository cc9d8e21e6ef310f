"""ClassVectors: the tuned teacher's text features of all class names, frozen between the stages."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpl.clip.identity import LARGEST_LOGIT_SCALE, ClipIdentity, Preprocessing
from kdpl.errors import ArtifactError
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.artifacts import read_tensors, write_tensors
from kdpl.runtime.fields import Fields
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE

KIND = "class vectors"
VERSION = 1

_REMEDY = "run stage 1 again, or give the class_vectors.safetensors of a teacher's run folder"


@dataclass(frozen=True)
class ClassVectors:
    """One vector per class, and where they came from.

    Attributes:
        vectors: Float32 [C, D], L2-normalised.
        class_names: The C names, by label.
        num_base: How many of them, the first ones, are base classes; None where there is no such split.
        clip: The teacher's CLIP.
        logit_scale: The teacher's factor on cosine similarities, exponentiated.
        context: The words that the prompts were started from; None if from noise.
        preprocessing: What the teacher expects of images.
        teacher: Fingerprint of the tuned teacher.
        class_texts: What the text tower read for each class, by label; None where that was its name.
    """

    vectors: Tensor
    class_names: tuple[str, ...]
    num_base: int | None
    clip: ClipIdentity
    logit_scale: float
    context: str | None
    preprocessing: Preprocessing
    teacher: str
    class_texts: tuple[str, ...] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """What the text tower read for each class: its text or its name."""
        return self.class_texts or self.class_names

    @classmethod
    def of(
        cls,
        prompts: TunedPrompts,
        vectors: Tensor,
        class_names: Sequence[str],
        num_base: int | None,
        class_texts: Sequence[str] | None = None,
    ) -> "ClassVectors":
        """Take the vectors [C, D] of names, or of texts in their place, that were encoded with a teacher's prompts."""
        named_otherwise = class_texts is not None and tuple(class_texts) != tuple(class_names)
        return cls(
            vectors=vectors,
            class_names=tuple(class_names),
            num_base=num_base,
            clip=prompts.clip,
            logit_scale=prompts.logit_scale,
            context=prompts.context,
            preprocessing=prompts.preprocessing,
            teacher=prompts.teacher,
            class_texts=tuple(class_texts) if class_texts is not None and named_otherwise else None,
        )

    def fields(self) -> dict[str, Any]:
        """Give all but the vectors as JSON values."""
        return {
            "class_names": list(self.class_names),
            "num_base": self.num_base,
            "clip": asdict(self.clip),
            "logit_scale": self.logit_scale,
            "context": self.context,
            "preprocessing": asdict(self.preprocessing),
            "teacher": self.teacher,
            **({} if self.class_texts is None else {"class_texts": list(self.class_texts)}),
        }

    @classmethod
    def from_fields(
        cls, vectors: Tensor, fields: Mapping[str, Any], source: str, remedy: str = _REMEDY
    ) -> "ClassVectors":
        """Put vectors and JSON values together again.

        Args:
            vectors: Float32 [C, D].
            fields: What ``fields`` gave.
            source: Where they come from, for messages.
            remedy: What a person is to do when they are damaged, for messages.

        Raises:
            ArtifactError: Something is missing, or the vectors do not fit the rest.
        """
        if not isinstance(fields, Mapping):
            raise ArtifactError(f"{source} does not say what its class vectors are: {remedy}")
        checked = Fields(fields, source, remedy)
        names = checked.class_names("class_names")
        read = cls(
            vectors=vectors,
            class_names=names,
            num_base=checked.whole_or_none("num_base", most=len(names)),
            clip=ClipIdentity.from_fields(checked.section("clip")),
            logit_scale=checked.positive("logit_scale", LARGEST_LOGIT_SCALE),
            context=checked.text_or_none("context"),
            preprocessing=Preprocessing.from_fields(checked.section("preprocessing")),
            teacher=checked.text("teacher"),
            class_texts=tuple(checked.texts("class_texts")) if "class_texts" in fields else None,
        )
        lengths = {len(read.class_names), len(read.texts)}
        if vectors.dtype != torch.float32 or vectors.ndim != 2 or lengths != {len(vectors)}:
            raise ArtifactError(
                f"{source} holds class vectors of type {vectors.dtype} and shape {tuple(vectors.shape)} for "
                f"{len(read.class_names)} class names, expected float32 [{len(read.class_names)}, D]: {remedy}"
            )
        if not torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors), device=vectors.device), atol=1e-3):
            raise ArtifactError(f"{source} holds class vectors that are not normalised: {remedy}")
        return read

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        write_tensors(path, KIND, VERSION, {"class_vectors": self.vectors}, self.fields())

    @classmethod
    def of_teacher(cls, folder: str, file: str | None = None) -> "ClassVectors":
        """Read the class vectors in a teacher's run folder, or another file of them.

        Raises:
            ArtifactError: As for ``load``.
        """
        return cls.load(file or Path(folder) / CLASS_VECTORS_FILE)

    @classmethod
    def load(cls, path: str | Path) -> "ClassVectors":
        """Read the file.

        Raises:
            ArtifactError: It is missing, damaged, of an unknown version or does not hold class vectors.
        """
        path = Path(path)
        tensors, fields = read_tensors(path, KIND, VERSION, _REMEDY)
        if "class_vectors" not in tensors:
            raise ArtifactError(f"{path} has no tensor named class_vectors: {_REMEDY}")
        return cls.from_fields(tensors["class_vectors"], fields, str(path))

    def require_names(self, class_names: Sequence[str], source: str) -> None:
        """Refuse vectors that are not for these classes in this order.

        Args:
            class_names: The names that the data has.
            source: Where the vectors come from, for the message.

        Raises:
            ArtifactError: The names differ; the first difference is named.
        """
        names = tuple(class_names)
        if names == self.class_names:
            return
        if len(names) != len(self.class_names):
            difference = f"it has {len(self.class_names)} classes, the data has {len(names)}"
        else:
            label = next(i for i, (a, b) in enumerate(zip(self.class_names, names, strict=True)) if a != b)
            difference = f"class {label} is {self.class_names[label]!r} there and {names[label]!r} in the data"
        raise ArtifactError(
            f"the class vectors of {source} are for other class names ({difference}): "
            "freeze class vectors for this data by running stage 1 on it"
        )
