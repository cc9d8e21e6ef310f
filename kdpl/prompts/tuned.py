"""TunedPrompts: what stage 1 learnt, as stage 2 reads it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from kdpl.artifacts import read_tensors, write_tensors
from kdpl.clip import fingerprint
from kdpl.errors import ArtifactError
from kdpl.prompts.vision import VisionPrompts
from kdpl.towers import ImageTower

KIND = "tuned prompts"
VERSION = 1
FILE = "prompts.safetensors"
"""Name of the file in a teacher's run folder."""

_REMEDY = "run stage 1 to its end, or give the run folder of a teacher"
_VISION = "vision_prompts.tokens"


@dataclass(frozen=True)
class TunedPrompts:
    """A teacher's prompts and the fingerprint that ties class vectors to them.

    Attributes:
        tensors: The prompts by name: ``vision_prompts.tokens`` [J, n, W], ``text_prompts.context`` [n, W] and
            ``text_prompts.deep`` [J - 1, n, W], as far as the teacher has them.
        teacher: Fingerprint of the tuned teacher.
    """

    tensors: Mapping[str, Tensor]
    teacher: str

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], clip_fingerprint: str) -> "TunedPrompts":
        """Take prompts of a teacher whose CLIP has this fingerprint."""
        return cls(tensors, fingerprint([*tensors.items()])[:16] + clip_fingerprint[:16])

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        write_tensors(path, KIND, VERSION, self.tensors, {"teacher": self.teacher})

    @classmethod
    def load(cls, path: Path) -> "TunedPrompts":
        """Read the file.

        Raises:
            ArtifactError: It is missing, damaged, of an unknown version or its prompts are not those it names.
        """
        tensors, fields = read_tensors(path, KIND, VERSION, _REMEDY)
        prompts = cls.of(tensors, str(fields.get("teacher", ""))[16:])
        if prompts.teacher != fields.get("teacher"):
            raise ArtifactError(f"{path} holds other prompts than its fingerprint says: {_REMEDY}")
        return prompts

    def vision_prompts(self, tower: ImageTower) -> VisionPrompts | None:
        """Give the visual prompts for a tower, frozen; None if the teacher has none.

        Raises:
            ArtifactError: They are for a tower of another width.
        """
        tokens = self.tensors.get(_VISION)
        if tokens is None:
            return None
        depth, length, width = tokens.shape
        if width != tower.width or depth > len(tower.blocks):
            raise ArtifactError(
                f"the tuned prompts are for an image tower of width {width} and at least {depth} layers, this one has "
                f"width {tower.width} and {len(tower.blocks)} layers: use the CLIP that the teacher was tuned on"
            )
        prompts = VisionPrompts(length, depth, tower)
        prompts.tokens = nn.Parameter(tokens, requires_grad=False)
        return prompts
