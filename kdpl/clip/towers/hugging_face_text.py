"""Text towers of Hugging Face transformers, with a learnt context at their input."""

from typing import Any, cast

from torch import Tensor, nn

from kdpl.clip.towers.bidirectional_text import WholeTextTower
from kdpl.clip.towers.text import ArrangedTexts, TextTower


class HuggingFaceTextTower(WholeTextTower):
    """Encoder of transformers that pools its tokens, such as BiomedCLIP's PubMedBERT.

    The encoder adds positions and applies its layers, so prompts can enter only at its input.

    Args:
        text: open_clip's ``HFTextEncoder``.
        start: Position of the first token of a text: 1 after a class token, 0 without one.
        padding: Id of the tokens that the encoder masks; None: it masks none.
    """

    takes_deep_prompts = False
    # the weights cast under autocast differ between models of transformers
    cast_weights = TextTower.cast_weights

    def __init__(self, text: Any, start: int, padding: int | None) -> None:
        # skip __init__ of the parent: it needs the modules of open_clip's transformers
        TextTower.__init__(self, text)
        self.start = start
        self.padding = padding

    def arrange(self, ids: Tensor) -> ArrangedTexts:
        """Take token ids [N, context_length] up to the end of the longest text."""
        if self.padding is not None:
            (used,) = (ids != self.padding).any(dim=0).nonzero(as_tuple=True)
            ids = ids[:, : int(used[-1]) + 1]
        return super().arrange(ids)

    @property
    def token_embedding(self) -> Any:
        """Embedding of tokens, before positions and layer norm."""
        encoder = self.text.transformer
        # get_input_embeddings fails for an encoder of m2m_100 before transformers 4.54
        return getattr(encoder, "embed_tokens", None) or encoder.get_input_embeddings()

    @property
    def blocks(self) -> list[Any]:
        """The whole encoder, as one block that takes prompts."""
        return [self.text.transformer]

    def _encode(self, ids: Tensor, context: Tensor | None, deep: Tensor | None) -> Tensor:
        if context is None:
            return cast(Tensor, self.text(ids))

        def enter(_: nn.Module, __: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
            return self._insert(context, tokens)

        # a hook, as not all towers take embeddings instead of ids, and some pool by ids
        with self.token_embedding.register_forward_hook(enter):
            return cast(Tensor, self.text(ids))
