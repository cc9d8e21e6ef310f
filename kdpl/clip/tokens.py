"""A CLIP's tokenizer, and what prompts need to know of it."""

from collections.abc import Callable
from functools import cached_property

from torch import Tensor


class Tokenizer:
    """Turns texts into token ids int64 [N, context_length], by a function of open_clip's kind.

    Where a text begins and which id pads it, the ids themselves tell, for tokenizers of any
    library.
    """

    def __init__(self, tokenize: Callable[[list[str]], Tensor]) -> None:
        self._tokenize = tokenize

    def __call__(self, texts: list[str]) -> Tensor:
        """Tokenise N texts."""
        return self._tokenize(texts)

    @cached_property
    def start(self) -> int:
        """Position of a text's first token: 1 after a start token, as CLIP's, 0 without one."""
        one, other = self(["a", "photo"])
        return int((one != other).nonzero()[0])

    @cached_property
    def _padding(self) -> int:
        return int(self([""])[0, -1])

    def words(self, text: str) -> Tensor:
        """The ids of a text alone, int64 [T], without start, end and padding."""
        empty, ids = self(["", text])
        count = int((ids != self._padding).sum() - (empty != self._padding).sum())
        own: Tensor = ids[self.start : self.start + count]
        return own

    def fills(self, text: str, ids: Tensor) -> bool:
        """Return whether the ids [context_length] of a text have no room for one more word.

        The end of such a text may be lost.
        """
        # padding may be the same id as the end of a text, which is there in any case
        return bool(ids[-2] != self._padding) and self([f"{text} a"])[0].equal(ids)
