"""Text towers of any architecture, and CLIP's, run without padding or repeated shared tokens.

CLIP's mask is causal. Tokens that all texts begin with, including learnt prompts, have the same
states in all texts, computed once, and tokens after the end of a text cannot affect its feature. A
few tokens per class name remain instead of 77, with the same features and gradients.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kdpl.clip.modules import FrozenTower
from kdpl.clip.towers.block import finish, in_projection, merge_heads, split_heads
from kdpl.errors import ConfigError

# class names whose activations are kept; with more, the backward pass recomputes activations
CLASSES_AT_ONCE = 128

_KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ArrangedTexts:
    """Token ids of N texts: a shared prefix, and the rest of each text by its length L."""

    prefix: Tensor  # ids that all texts begin with, int64 [P], at most up to the first end of text
    places: tuple[Tensor, ...]  # indices of the texts with each length, int64 [N_l]
    rests: tuple[Tensor, ...]  # their ids up to the end of text, int64 [N_l, L]

    @classmethod
    def of(cls, ids: Tensor, end: int | None = None) -> "ArrangedTexts":
        """Arrange token ids [N, context_length]; without ``end``, texts end at the highest id."""
        # the prefix ends at the first difference, or at the first end of a text
        ends = ends_of(ids, end)
        differs = (ids != ids[:1]).any(dim=0).nonzero()[:, 0]
        shared = min([int(ends.min()), *differs[:1].tolist()])
        lengths = sorted(set(ends.tolist()))
        places = tuple((ends == end).nonzero()[:, 0] for end in lengths)
        rests = tuple(
            ids[rows, shared : end + 1] for rows, end in zip(places, lengths, strict=True)
        )
        return cls(ids[0, :shared], places, rests)


def ends_of(ids: Tensor, end: int | None) -> Tensor:
    """Find the ends of texts in token ids [N, L]: the id ``end``, or the highest id; int64 [N]."""
    return (ids if end is None else (ids == end).int()).argmax(dim=-1)


class TextTower(FrozenTower):
    """Text tower of any architecture, open_clip's module ``text``; it takes no prompts."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.text = text
        self.requires_grad_(False).train()

    def cast_weights(self) -> Iterator[nn.Parameter]:
        """Yield nothing: open_clip's module would round its embeddings to the layers' type."""
        yield from ()

    def arrange(self, ids: Tensor) -> ArrangedTexts:
        """Take token ids [N, context_length] as they are, since the tower reads all of them."""
        return ArrangedTexts(ids[0, :0], (torch.arange(len(ids), device=ids.device),), (ids,))

    def forward(self, texts: ArrangedTexts) -> Tensor:
        """Encode the texts of C classes into features [C, embed_dim], not normalised."""
        return torch.cat([self.text(ids) for ids in torch.split(texts.rests[0], CLASSES_AT_ONCE)])


class PromptableTextTower(TextTower):
    """CLIP text transformer with a causal mask that pools at the end-of-text token.

    Args:
        text: An ``open_clip.CLIP`` or ``open_clip.TextTransformer`` with the modules to use.
        start: Position of the first token of a text, after the tokenizer's start token.
        end: End-of-text id; None: the highest id in the vocabulary.
    """

    takes_deep_prompts = True

    def __init__(self, text: Any, start: int, end: int | None) -> None:
        FrozenTower.__init__(self)
        self.transformer = text.transformer
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.start = start
        self.end = end
        self.requires_grad_(False).train()

    def arrange(self, ids: Tensor) -> ArrangedTexts:
        """Arrange token ids [N, context_length] for ``forward``."""
        return ArrangedTexts.of(ids, self.end)

    @property
    def blocks(self) -> list[Any]:
        """The transformer's residual blocks, first to last."""
        return list(self.transformer.resblocks)

    def cast_weights(self) -> Iterator[nn.Parameter]:
        """Yield the weights of every tower, and attention biases."""
        yield from FrozenTower.cast_weights(self)
        yield from (block.attn.in_proj_bias for block in self.blocks)

    @property
    def width(self) -> int:
        """Width W of the tokens."""
        return int(self.token_embedding.weight.shape[1])

    def forward(
        self,
        texts: ArrangedTexts,
        context: Tensor | None = None,
        deep: Tensor | None = None,
        classes_at_once: int = CLASSES_AT_ONCE,
    ) -> Tensor:
        """Encode the texts of C classes into features [C, embed_dim], not normalised.

        Args:
            texts: Texts that begin with the start token and the words that ``context`` replaces.
            context: Learnt prompts of layer 0, [n, W], at positions start..start + n - 1.
            deep: Learnt prompts of the next layers, [J - 1, m, W], at the last m of the same
                positions.
            classes_at_once: Number of texts whose activations are kept at a time for the backward
                pass; the result is the same.
        """
        end = None if context is None else self.start + len(context)
        shared = self._shared(self.embed(texts.prefix[None], 0, context), deep, end)
        order, encode, parts = torch.cat(texts.places), self._rest, [list(texts.rests)]
        if len(order) > classes_at_once:
            parts = [[part] for rest in texts.rests for part in torch.split(rest, classes_at_once)]
            if torch.is_grad_enabled() and any(t.requires_grad for pair in shared for t in pair):
                encode = partial(checkpoint, self._rest, use_reentrant=False)
        features = torch.cat([encode(part, shared) for part in parts])
        return torch.zeros_like(features).index_copy(0, order, features)

    def embed(self, ids: Tensor, start: int, context: Tensor | None = None) -> Tensor:
        """Embed token ids [B, L] at positions from ``start`` on, [B, L, W].

        A context replaces embeddings, as in ``forward``.
        """
        tokens: Tensor = self.token_embedding(ids)
        if context is not None:
            tokens = self._insert(context, tokens)
        positions: Tensor = self.positional_embedding[start : start + ids.shape[1]]
        return tokens + positions.to(tokens.dtype)

    def _insert(self, prompts: Tensor, x: Tensor, end: int | None = None) -> Tensor:
        """Replace the first n tokens of texts [B, L, W], or the last before ``end``, by [n, W]."""
        start = self.start if end is None else end - len(prompts)
        inserted = prompts.to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([x[:, :start], inserted, x[:, start + len(prompts) :]], dim=1)

    def project(self, pooled: Tensor) -> Tensor:
        """Project pooled tokens [B, W] into the joint space, [B, embed_dim]."""
        projection = self.text_projection
        if isinstance(projection, nn.Linear):
            return cast(Tensor, projection(pooled))
        return pooled if projection is None else pooled @ projection

    def _shared(self, x: Tensor, deep: Tensor | None, end: int | None) -> list[_KeysValues]:
        # keys and values of the shared tokens [1, P, W] at every layer, [1, heads, P, W / heads]
        layers: list[_KeysValues] = []
        for layer, block in enumerate(self.blocks):
            if deep is not None and 0 < layer <= len(deep):
                x = self._insert(deep[layer - 1], x, end)
            q, k, v = split_heads(block, in_projection(block, x))
            layers.append((k, v))
            if layer < len(self.blocks) - 1:  # the last layer's output is not used
                attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                x = finish(block, x, merge_heads(attended))
        return layers

    def _rest(self, groups: list[Tensor], shared: list[_KeysValues]) -> Tensor:
        """Compute features from the rests of texts, in groups of equal length L, each [B, L].

        Attention runs group by group, everything else on all tokens as one row [T, W].
        """
        # positions continue after the shared tokens
        before, sizes = shared[0][0].shape[2], [group.numel() for group in groups]
        masks = [_mask(group.shape[1], before, group.device) for group in groups]
        x = torch.cat([self.embed(group, before).flatten(0, 1) for group in groups])
        last = len(self.blocks) - 1
        for layer, (block, keys_values) in enumerate(zip(self.blocks, shared, strict=True)):
            attended, projected = [], torch.split(in_projection(block, x), sizes)
            for group, mask, part in zip(groups, masks, projected, strict=True):
                q, *rest = split_heads(block, part.view(*group.shape, -1))
                k, v = (
                    torch.cat([s.expand(len(t), -1, -1, -1), t], 2)
                    for s, t in zip(keys_values, rest, strict=True)
                )
                if layer == last:  # only the end of the text is used
                    q, mask = q[:, :, -1:], mask[-1:]
                heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
                attended.append(merge_heads(heads).flatten(0, 1))
            if layer == last:
                parts = zip(groups, torch.split(x, sizes), strict=True)
                x = torch.cat([part.view(*group.shape, -1)[:, -1] for group, part in parts])
            x = finish(block, x, torch.cat(attended))
        return self.project(self.ln_final(x))


def promptable_text(tower: TextTower, depth: int = 1) -> PromptableTextTower:
    """Narrow a tower to one that takes prompts in its first ``depth`` layers, or a ConfigError."""
    if not isinstance(tower, PromptableTextTower):
        raise ConfigError(
            f"a text tower of kind {type(tower.text).__name__} takes no prompts: set "
            "text_prompts.depth to 0 and give "
            "a context, or use a CLIP with open_clip's text transformer"
        )
    if depth > 1 and not tower.takes_deep_prompts:
        raise ConfigError(
            f"a text tower of kind {type(tower.text).__name__} takes prompts at its input alone, "
            f"not in {depth} layers: set text_prompts.depth to 1"
        )
    return tower


def _mask(length: int, before: int, device: torch.device) -> Tensor:
    # bool [L, P + L]: the rest of a text attends to all shared tokens, and to itself causally
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return torch.cat([causal.new_ones(length, before), causal], dim=1)
