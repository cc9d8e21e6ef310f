"""Vision transformers other than CLIP's (``clip_vit.py``), with prompts next to their tokens."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from kdpl.clip.towers.image import PromptableImageTower

Enter = Callable[[int, Tensor], Tensor]


class TransformerTower(PromptableImageTower):
    """Vision transformer whose module does everything except prompts.

    Prompts join the tokens [B, L, W] right before the first block and leave after the last block,
    so embedding, pooling and head see only the image's tokens. Rotary position embeddings do not
    rotate them.
    """

    def compile_parts(self) -> None:
        """Compile attention and MLP of each block in place; prompts enter outside of them."""
        for block in self.blocks:
            block.attn.compile()
            block.mlp.compile()

    def with_prompts(self, images: Tensor, prompts: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] with prompts [J, n, W] in the first J blocks."""
        depth, length, _ = prompts.shape

        def enter(layer: int, x: Tensor) -> Tensor:
            if layer >= depth:
                return x
            expanded = prompts[layer].to(x.dtype).expand(len(x), -1, -1)
            return torch.cat([x if layer == 0 else x[:, :-length], expanded], dim=1)

        with _watched(self.blocks, enter, length):
            return cast(Tensor, self(images))

    def patch_sums(self, images: Tensor, depth: int) -> Tensor:
        """Sum the mean patch tokens of images [B, 3, S, S] for each layer's prompts: [J, W]."""
        sums: list[Tensor] = []
        # class and register tokens come before patch tokens
        trunk = getattr(self.visual, "trunk", None)
        first = 1 if trunk is None else trunk.num_prefix_tokens

        def look(_: int, x: Tensor) -> Tensor:
            sums.append(x[:, first:].float().mean(dim=1).sum(dim=0))
            return x

        with _watched(self.blocks[:depth], look, 0):
            self(images)
        return torch.stack(sums)


@contextmanager
def _watched(blocks: list[Any], enter: Enter, length: int) -> Iterator[None]:
    """Let ``enter`` change the tokens [B, L, W] before each block, and drop the last ``length``."""

    def before(
        layer: int, _: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        # EVA passes its rotary embeddings to each block
        if kwargs.get("rope") is not None:
            kwargs = {**kwargs, "rope": _pad_rope(kwargs["rope"], length)}
        return (enter(layer, args[0]), *args[1:]), kwargs

    def after(_: Any, __: Any, x: Tensor) -> Tensor:
        return x[:, :-length]

    with ExitStack() as hooks:
        for layer, block in enumerate(blocks):
            handle = block.register_forward_pre_hook(partial(before, layer), with_kwargs=True)
            hooks.callback(handle.remove)
        if length:
            hooks.callback(blocks[-1].register_forward_hook(after).remove)
        yield


def _pad_rope(rope: Tensor, length: int) -> Tensor:
    """Extend rotary embeddings [..., patches, 2 d] by ``length`` positions that are not rotated."""
    # sines before cosines
    still = torch.zeros_like(rope[..., :1, :].expand(*rope.shape[:-2], length, -1))
    still[..., rope.shape[-1] // 2 :] = 1
    return torch.cat([rope, still], dim=-2)
