"""Vision transformers of CLIP, run on the same weights with less copying and no unused tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kdpl.clip.towers.block import run_block, run_first_token
from kdpl.clip.towers.image import PromptableImageTower


class ClassTokenTower(PromptableImageTower):
    """CLIP vision transformer that pools by its class token."""

    _run: Callable[[nn.Module, Tensor], Tensor] = staticmethod(run_block)

    def cast_weights(self) -> Iterator[nn.Parameter]:
        """Yield the weights of every tower, attention biases, and the embeddings of ``embed``."""
        yield from super().cast_weights()
        yield from (block.attn.in_proj_bias for block in self.blocks)
        yield from (self.visual.class_embedding, self.visual.positional_embedding)

    def embed(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, S, S] as class token and patches [B, 1 + P, W], before ``ln_pre``."""
        visual = self.visual
        patches: Tensor = visual.conv1(self._input(images)).flatten(2).transpose(1, 2)
        # .shape, since len() would fix the batch size in an exported graph
        batch = patches.shape[0]
        class_token = visual.class_embedding.to(patches.dtype).expand(batch, 1, -1)
        positions: Tensor = visual.positional_embedding.to(patches.dtype)
        return torch.cat([class_token, patches], dim=1) + positions

    def compile_parts(self) -> None:
        """Compile the blocks in place; they share one graph, compiled once."""
        self._run = torch.compile(run_block)

    def run_block(self, layer: int, tokens: Tensor) -> Tensor:
        """Run a block on tokens [B, L, W], the first one after ``ln_pre``.

        The last block returns only the class token, [B, 1, W].
        """
        run = run_first_token if layer == len(self.blocks) - 1 else self._run
        return run(self.blocks[layer], tokens if layer else self.visual.ln_pre(tokens))

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] into unnormalised features [B, embed_dim], without prompts."""
        return self.project(self.pooled(images))

    def pooled(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] into normed class tokens [B, W], without prompts."""
        return self._pool(self.embed(images), ())

    def with_prompts(self, images: Tensor, prompts: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] with prompts [J, n, W]; the first enter before ``ln_pre``."""
        x = self.embed(images)
        return self.project(self._pool(x, prompts.to(x.dtype).unbind()))

    def project(self, pooled: Tensor) -> Tensor:
        """Map pooled class tokens [B, W] to the joint space, [B, embed_dim]."""
        return pooled if self.visual.proj is None else cast(Tensor, pooled @ self.visual.proj)

    def _pool(self, x: Tensor, prompts: Sequence[Tensor]) -> Tensor:
        """Run embedded images [B, L, W] with the prompts [n, W] of the first layers: [B, W]."""
        length = x.shape[1]
        for layer in range(len(self.blocks)):
            if layer < len(prompts):
                expanded = prompts[layer].to(x.dtype).expand(x.shape[0], -1, -1)
                x = torch.cat([x[:, :length], expanded], dim=1)
            x = self.run_block(layer, x)
        return cast(Tensor, self.visual.ln_post(x[:, 0]))

    def patch_sums(self, images: Tensor, depth: int) -> Tensor:
        """Sum the mean patch tokens of images [B, 3, S, S] at the first J layers: [J, W]."""
        x = self.embed(images)
        sums = []
        for layer in range(depth):
            # layer 0's prompts enter before ln_pre, so their mean is taken there
            sums.append(x[:, 1:].float().mean(dim=1).sum(dim=0))
            x = self.run_block(layer, x)
        return torch.stack(sums)
