"""The folder of a classifier: classifier.json, model.safetensors and files of scores.

The weights are the whole image tower, so that nothing else is needed. Only the files of scores hold
a digest of them.
"""

import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic.dataclasses
import torch
from pydantic import Field, JsonValue, TypeAdapter
from safetensors.torch import load_file, save
from torch import Tensor

from kdpl.class_vectors import ClassVectors
from kdpl.classifier.companion import Companion
from kdpl.clip import ClipIdentity
from kdpl.clip.identity import LogitScale
from kdpl.clip.loading import fingerprint
from kdpl.data.decoding import PUBLISHED, Decoding
from kdpl.errors import ArtifactError, reason, visible
from kdpl.prompts.student_encoder import (
    EncoderSettings,
    StudentEncoder,
    encoder_tensors,
    read_encoder,
)
from kdpl.runtime.artifacts import STRICT, parse_metadata
from kdpl.runtime.files import atomic_path, write_text
from kdpl.runtime.run_folder import CLASSIFIER_FILES, CLASSIFIER_REMEDY, require_classifier

_CONFIG, _WEIGHTS = CLASSIFIER_FILES
# of a classifier's files, and of those that are kept beside it
_ENDINGS = (".json", ".safetensors")


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class _Settings(EncoderSettings):
    """The contents of classifier.json."""

    kind: Literal["kdpl classifier"]
    version: Annotated[int, Field(ge=1, le=1)]
    clip: ClipIdentity
    logit_scale: LogitScale
    class_vectors: dict[str, Any]
    decoding: Decoding = PUBLISHED
    # settings of the task of the class vectors, such as thresholds
    task: Annotated[dict[str, JsonValue], Field(exclude_if=operator.not_)] = field(
        default_factory=dict
    )


def keep_task(folder: Path, settings: Mapping[str, Any]) -> None:
    """Replace the settings of a classifier's task, such as thresholds, in its folder."""
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    write_text(
        folder / _CONFIG, json.dumps({**config, "task": settings}, indent=2, ensure_ascii=False)
    )


class Stored(NamedTuple):
    """Contents of a classifier's two files: the first arguments of ``Classifier``."""

    encoder: StudentEncoder
    vectors: ClassVectors
    logit_scale: float
    clip: ClipIdentity
    decoding: Decoding
    task: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Return all weights and the class vectors, by name."""
        return {**encoder_tensors(self.encoder), "class_vectors": self.vectors.vectors}

    def fingerprint(self) -> str:
        """Digest of all weights and class vectors, and of what classes have beside these.

        Companions keep it; scale of the logits, preprocessing and decoding are not part of it.
        """
        scores = {"scales": self.vectors.scales, "biases": self.vectors.biases}
        further = {name: torch.tensor(each) for name, each in scores.items() if each is not None}
        return fingerprint({**self.tensors(), **further}.items())

    def write(self, folder: Path, beside: Iterable[Companion]) -> None:
        """Write a folder, atomically, in place of a classifier; an ArtifactError for any other."""
        there = list(folder.iterdir()) if folder.is_dir() else []
        others = [
            path.name for path in there if path.suffix not in _ENDINGS and path.name != "README.md"
        ]
        if there and not any(path.name == _CONFIG for path in there):
            others = [path.name for path in there]
        if others:
            raise ArtifactError(
                f"{folder} holds other things than a classifier ({visible(min(others))}), which "
                "would be lost: give a new folder, or an empty one"
            )
        encoder = self.encoder
        depth, length = encoder.prompts.tokens.shape[:2] if encoder.prompts is not None else (0, 0)
        settings = _Settings(
            kind="kdpl classifier",
            version=1,
            clip=self.clip,
            image_config=encoder.tower.module.config,
            preprocessing=encoder.tower.module.preprocessing,
            prompt_length=length,
            prompt_depth=depth,
            projector=encoder.projector is not None,
            logit_scale=self.logit_scale,
            class_vectors=self.vectors.fields(),
            decoding=self.decoding,
            task=self.task,
        )
        config = TypeAdapter(_Settings).dump_python(settings, mode="json")
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()
        }
        digest = self.fingerprint()
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            # not by save_file, whose error of a full disk has no number
            (temporary / _WEIGHTS).write_bytes(save(tensors))
            (temporary / _CONFIG).write_text(
                json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8"
            )
            for companion in beside:
                companion.save(temporary, digest)

    @classmethod
    def read(cls, folder: Path) -> "Stored":
        """Read a folder; an ArtifactError if it is missing, damaged or of another version."""
        source = f"the classifier {folder}"
        require_classifier(folder)
        try:
            config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            tensors = load_file(folder / _WEIGHTS)
            own = tensors.pop("class_vectors")
        except Exception as error:
            # json, safetensors, the encoding and the disk each raise their own
            raise ArtifactError(
                f"{source} is damaged ({reason(error)}): {CLASSIFIER_REMEDY}"
            ) from error
        settings = parse_metadata(_Settings, config, source, CLASSIFIER_REMEDY)
        vectors = ClassVectors.from_fields(own, settings.class_vectors, source, CLASSIFIER_REMEDY)
        width = vectors.vectors.shape[1]
        encoder = read_encoder(settings, tensors, width, source, CLASSIFIER_REMEDY)
        used = (settings.logit_scale, settings.clip, settings.decoding, settings.task)
        return cls(encoder, vectors, *used)
