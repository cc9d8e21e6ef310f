"""A tuned teacher's text half: class names in, class vectors out."""

from collections.abc import Sequence
from pathlib import Path

from kdpl.class_vectors import ClassVectors
from kdpl.prompts.tuned import FILE, TunedPrompts


class NameEncoder:
    """Encodes class names with the prompts of a teacher that is tuned already.

    Args:
        prompts: The teacher's prompts.

    Raises:
        KdplError: The CLIP that they were tuned on cannot be had, or is another one by now.
    """

    def __init__(self, prompts: TunedPrompts) -> None:
        self.prompts = prompts
        clip = prompts.load_clip()
        self._tower, self._tokenize = clip.text_tower, clip.tokenize
        self._method = prompts.restore(clip)

    @classmethod
    def load(cls, run: str | Path) -> "NameEncoder":
        """Take the teacher of a run's folder.

        Raises:
            KdplError: The folder has no prompts, or they are damaged or do not fit their CLIP.
        """
        return cls(TunedPrompts.load(Path(run) / FILE))

    def encode(
        self, names: Sequence[str], num_base: int | None = None, texts: Sequence[str] | None = None
    ) -> ClassVectors:
        """Give the class vectors of names.

        Args:
            names: The names, in the order of their labels.
            num_base: How many of them, the first ones, are base classes; None where there is no such split.
            texts: What the text tower reads for each; None: the names.

        Raises:
            ConfigError: A name is too long for the text tower.
        """
        read = names if texts is None else texts
        vectors = self._method.encode_names(read, self._tower, self._tokenize)
        return ClassVectors.of(self.prompts, vectors, names, num_base, texts)
