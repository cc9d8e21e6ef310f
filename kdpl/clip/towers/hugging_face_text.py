"""Text towers of Hugging Face transformers, which take a learnt context at their input."""

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from kdpl.clip.towers.bidirectional_text import WholeTextTower
from kdpl.clip.towers.text import TextTower


class HuggingFaceTextTower(WholeTextTower):
    """An encoder of transformers that pools its tokens, as BiomedCLIP's PubMedBERT.

    It adds positions and applies its layers itself, so that prompts can enter at its input alone.

    Args:
        text: open_clip's ``HFTextEncoder``.
        start: Position of the first token of a text: 1 after a class token, 0 without one.
    """

    takes_deep_prompts = False

    def __init__(self, text: Any, start: int = 1) -> None:
        # the modules of open_clip's own transformers are not there
        TextTower.__init__(self, text)
        self.start = start

    def cast_weights(self) -> Iterator[nn.Parameter]:
        """Yield nothing: what transformers casts under autocast differs between its models."""
        yield from TextTower.cast_weights(self)

    @property
    def token_embedding(self) -> Any:
        """The embedding of tokens, before positions and layer norm."""
        encoder = self.text.transformer
        # before transformers 4.54 an encoder of m2m_100 does not find it
        return getattr(encoder, "embed_tokens", None) or encoder.get_input_embeddings()

    @property
    def blocks(self) -> list[Any]:
        """The whole encoder, as one block that prompts can enter."""
        return [self.text.transformer]

    def _encode(self, ids: Tensor, context: Tensor | None, deep: Tensor | None) -> Tensor:
        del deep  # none
        if context is None:
            return cast(Tensor, self.text(ids))

        def enter(_: nn.Module, __: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
            return self._insert(context, tokens)

        # not all towers take embeddings in place of ids, by which some of them pool
        with self.token_embedding.register_forward_hook(enter):
            return cast(Tensor, self.text(ids))
