"""Text towers without a causal mask: every token affects every other."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdpl.clip.towers.block import run_block
from kdpl.clip.towers.text import (
    CLASSES_AT_ONCE,
    ArrangedTexts,
    PromptableTextTower,
    TextTower,
    ends_of,
)


class WholeTextTower(PromptableTextTower):
    """Text transformer of open_clip without a causal mask, as in SigLIP, CLIPA and MobileCLIP.

    Every token affects every other, including padding: nothing is shared between texts, and all
    tokens are computed.

    Args:
        text: As for ``PromptableTextTower``.
        pool_type: Token that becomes the feature, in open_clip's words: ``argmax``, ``eos``,
            ``first`` or ``last``.
        end: End-of-text id, for pooling by it.
        start: Position of the first token of a text.
    """

    def __init__(self, text: Any, pool_type: str, end: int | None, start: int) -> None:
        super().__init__(text, start, end)
        self.pool_type = pool_type

    arrange = TextTower.arrange

    def forward(
        self,
        texts: ArrangedTexts,
        context: Tensor | None = None,
        deep: Tensor | None = None,
        classes_at_once: int = CLASSES_AT_ONCE,
    ) -> Tensor:
        """Encode the texts of C classes into unnormalised features [C, embed_dim]."""
        # to save memory, activations of a few classes at a time are kept for the backward pass
        recompute = torch.is_grad_enabled() and len(texts.rests[0]) > classes_at_once
        encode = (
            partial(checkpoint, self._encode, use_reentrant=False) if recompute else self._encode
        )
        parts = torch.split(texts.rests[0], classes_at_once)
        return torch.cat([encode(ids, context, deep) for ids in parts])

    def _encode(self, ids: Tensor, context: Tensor | None, deep: Tensor | None) -> Tensor:
        # prompts of layer 0 replace embeddings, deep prompts replace states
        x, end = self.embed(ids, 0, context), None if context is None else self.start + len(context)
        for layer, block in enumerate(self.blocks):
            if deep is not None and 0 < layer <= len(deep):
                x = self._insert(deep[layer - 1], x, end)
            x = run_block(block, x)
        x = self.ln_final(x)
        if self.pool_type in ("first", "last"):
            return self.project(x[:, 0 if self.pool_type == "first" else -1])
        return self.project(x[torch.arange(len(x), device=x.device), ends_of(ids, self.end)])
