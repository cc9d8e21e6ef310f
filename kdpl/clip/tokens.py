"""Tokenizer of a CLIP, with the properties that prompts need."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(eq=False)
class Tokenizer:
    """Tokenizer of texts to token ids, int64 [N, context_length], by a function as in open_clip.

    The start of a text and the padding id are inferred from ids, for tokenizers of any library.
    """

    tokenize: Callable[[list[str]], Tensor]

    def __call__(self, texts: list[str]) -> Tensor:
        """Tokenise N texts."""
        return self.tokenize(texts)

    @cached_property
    def start(self) -> int:
        """Position of a text's first token: 1 after a start token, as CLIP's, 0 without one."""
        # the first position at which two one-word texts differ
        first, second = self(["a", "photo"])
        return int((first != second).nonzero()[0])

    @cached_property
    def _padding(self) -> int:
        return int(self([""])[0, -1])

    def words(self, text: str) -> Tensor:
        """Return the ids of a text, int64 [T], without start, end and padding."""
        empty, ids = self(["", text])
        count = int((ids != self._padding).sum() - (empty != self._padding).sum())
        word_ids: Tensor = ids[self.start : self.start + count]
        return word_ids

    def fills(self, text: str, ids: Tensor) -> bool:
        """Return whether the ids [context_length] of a text have no room for one more word."""
        # padding may have the id of the end of text, so the last id does not tell
        return bool(ids[-2] != self._padding) and self([f"{text} a"])[0].equal(ids)
