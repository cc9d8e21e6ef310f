"""The folder of a classifier: classifier.json, model.safetensors, README.md and companion files.

The weights include the whole image tower, so nothing else is needed. Only the companion files hold
a digest of the weights.
"""

import json
import operator
from collections.abc import Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, JsonValue, TypeAdapter
from safetensors.torch import load_file, save
from torch import Tensor

from kdpl.class_vectors import ClassVectors
from kdpl.clip.identity import ClipIdentity, LogitScale
from kdpl.clip.modules import fingerprint
from kdpl.data.decoding import PUBLISHED, Decoding
from kdpl.errors import ArtifactError, reason, visible
from kdpl.prompts.student_encoder import (
    EncoderSettings,
    StudentEncoder,
    encoder_tensors,
    read_encoder,
)
from kdpl.runtime.artifacts import metadata, parse_metadata
from kdpl.runtime.files import atomic_path, read_json, write_text
from kdpl.runtime.run_folder import (
    CARD_FILE,
    CLASSIFIER_FILES,
    CLASSIFIER_REMEDY,
    require_classifier,
)

if TYPE_CHECKING:
    from kdpl.classifier.companion import Companion

_CONFIG, _WEIGHTS = CLASSIFIER_FILES
# endings of a classifier's files and of companion files
_ENDINGS = (".json", ".safetensors")


@metadata
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
    file = folder / _CONFIG
    config = {**read_json(file), "task": settings}
    write_text(file, json.dumps(config, indent=2, ensure_ascii=False))


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
        """Return the digest of all weights and class vectors, with scales and biases if any.

        Companions keep it. It leaves out the scale of the logits, preprocessing and decoding.
        """
        scaling = {"scales": self.vectors.scales, "biases": self.vectors.biases}
        further = {
            name: torch.tensor(values) for name, values in scaling.items() if values is not None
        }
        return fingerprint({**self.tensors(), **further}.items())

    def write(self, folder: Path, companions: "Iterable[Companion]", card: str) -> None:
        """Write a folder atomically, replacing a classifier; an ArtifactError for other folders."""
        # replace nothing but a classifier
        existing = list(folder.iterdir()) if folder.is_dir() else []
        foreign = {path.name for path in existing}
        if (folder / _CONFIG).exists():
            foreign -= {path.name for path in existing if path.suffix in _ENDINGS} | {CARD_FILE}
        if foreign:
            raise ArtifactError(
                f"{folder} holds other things than a classifier ({visible(min(foreign))}) that "
                "would be lost: give a new folder, or an empty one"
            )

        # the settings
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
            projector=True,
            projector_layers=encoder.projector.depth,
            logit_scale=self.logit_scale,
            class_vectors=self.vectors.fields(),
            decoding=self.decoding,
            task=self.task,
        )
        config = TypeAdapter(_Settings).dump_python(settings, mode="json")

        # the weights, and all files at once
        tensors = {
            name: value.detach().cpu().contiguous() for name, value in self.tensors().items()
        }
        digest = self.fingerprint()
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            # not by save_file: its error for a full disk has no errno
            (temporary / _WEIGHTS).write_bytes(save(tensors))
            (temporary / _CONFIG).write_text(
                json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8"
            )
            (temporary / CARD_FILE).write_text(card, encoding="utf-8")
            for companion in companions:
                companion.save(temporary, digest)

    @classmethod
    def read(cls, folder: Path) -> "Stored":
        """Read a folder; an ArtifactError if it is missing, damaged or of another version."""
        source = f"the classifier {folder}"
        require_classifier(folder)
        try:
            config = read_json(folder / _CONFIG)
            tensors = load_file(folder / _WEIGHTS)
            class_vectors = tensors.pop("class_vectors")
        except Exception as error:
            # json, safetensors, the encoding and the disk raise various errors
            raise ArtifactError(
                f"{source} is damaged ({reason(error)}): {CLASSIFIER_REMEDY}"
            ) from error

        # restore class vectors and encoder from the settings
        settings = parse_metadata(_Settings, config, source, CLASSIFIER_REMEDY)
        vectors = ClassVectors.from_fields(
            class_vectors, settings.class_vectors, source, CLASSIFIER_REMEDY
        )
        width = vectors.vectors.shape[1]
        encoder = read_encoder(settings, tensors, width, source, CLASSIFIER_REMEDY)
        used = (settings.logit_scale, settings.clip, settings.decoding, settings.task)
        return cls(encoder, vectors, *used)
