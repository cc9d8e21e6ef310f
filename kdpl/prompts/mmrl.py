"""Representation tokens in both towers (MMRL, arXiv 2503.08497, section 3).

Both kinds of logits share the text features t: α f·t + (1 − α) r·t, with an image's class feature f
and its representation feature r, is the inner product of the unit vectors [√α f, √(1 − α) r] and
[√α t, √(1 − α) t]. Stage 2 reads these vectors, of twice the CLIP's width.
"""

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdpl.clip.clip import Clip, ImageClip
from kdpl.clip.modules import normalized
from kdpl.clip.towers.block import run_block
from kdpl.clip.towers.clip_vit import ClassTokenTower
from kdpl.clip.towers.text import CLASSES_AT_ONCE, ArrangedTexts, PromptableTextTower
from kdpl.errors import ConfigError
from kdpl.prompts.method import PromptMethod
from kdpl.prompts.vision import PromptConfig


class RepresentationTokens(PromptMethod):
    """Learnt tokens of a space shared by both towers, mapped into each of several upper layers.

    These layers replace them after an image's tokens, and after a text's start token; then they
    flow. ``space`` is [K, width], from N(0, 0.02²); ``maps`` has a Linear for each tower and layer,
    initially equal within a tower; ``projection``, [W, D], maps the mean of an image's last tokens
    to r. ``vision`` and ``text`` have one size: K and layers; published: 5 and 7.

    Args:
        first_layer: The first layer with tokens, counted from 1.
        width: Width of the space.
        share: α in loss and prediction.
        weight: λ of the regularisation.
        combine: Predict from both features; false: from f alone, as published for novel classes.

    Raises:
        ConfigError: Settings or CLIP do not fit.
    """

    text_is_fixed = False

    def __init__(
        self,
        vision: PromptConfig,
        text: PromptConfig,
        context: str | None,
        clip: ImageClip,
        first_layer: int = 6,
        width: int = 512,
        share: float = 0.7,
        weight: float = 1.0,
        combine: bool = True,
    ) -> None:
        super().__init__(vision, text, context, clip)
        self.first_layer, self.width, self.combine = first_layer, width, combine
        self.share, self.weight = share, weight

        towers: dict[str, Any] = {"image": clip.image_tower}
        towers |= {"text": clip.text_tower} if isinstance(clip, Clip) else {}
        kinds = {type(tower) for tower in towers.values()}
        supported = kinds <= {ClassTokenTower, PromptableTextTower}
        layers = min(len(tower.blocks) for tower in towers.values()) if supported else 0
        valid = vision == text and vision.length > 0 and 0 < share < 1 and context is not None
        if not valid or not 0 < first_layer <= first_layer + vision.depth - 1 <= layers:
            raise ConfigError(
                f"sizes {vision} and {text} from layer {first_layer} on, share {share} and context "
                f"{context!r} do not fit {layers} layers of CLIP transformers: give one size for "
                "both towers, a share between 0 and 1, words, and a CLIP of two transformers"
            )

        self.space = nn.Parameter(torch.randn(vision.length, width) * 0.02)
        projection = torch.randn(towers["image"].width, clip.image_tower.embed_dim)
        self.projection = nn.Parameter(projection * len(projection) ** -0.5)
        self.maps: Any = nn.ModuleDict()
        for kind, tower in towers.items():
            first = nn.Linear(width, tower.width, dtype=torch.float32)
            self.maps[kind] = nn.ModuleList(deepcopy(first) for _ in range(vision.depth))

    def _tokens(self, kind: str) -> dict[int, Tensor]:
        """Tokens [K, W] of a tower by layer, float32 under autocast too."""
        with torch.autocast(self.space.device.type, enabled=False):
            layers = enumerate(self.maps[kind], self.first_layer)
            return {number: linear(self.space) for number, linear in layers}

    def image_features(self, tower: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images into f and r; normalised, each [B, D]."""
        x, tokens = tower.visual.ln_pre(tower.embed(images)), self._tokens("image")
        length = x.shape[1]
        # each layer with tokens replaces the tokens of the layer before
        for layer, block in enumerate(tower.blocks, 1):
            if layer in tokens:
                new = tokens[layer].to(x.dtype).expand(x.shape[0], -1, -1)
                x = torch.cat([x[:, :length], new], dim=1)
            x = run_block(block, x)
        x = tower.visual.ln_post(torch.cat([x[:, :1], x[:, length:]], dim=1))
        with torch.autocast(x.device.type, enabled=False):
            representation = x[:, 1:].mean(dim=1).float() @ self.projection
        return normalized(x[:, 0] @ tower.visual.proj), normalized(representation)

    def text_features(self, tower: Any, texts: ArrangedTexts, at_once: int) -> Tensor:
        """Encode arranged class names into t; normalised, [C, D]."""
        tokens, start, order = self._tokens("text"), tower.start, torch.cat(texts.places)

        def encode(ids: Tensor) -> Any:
            # texts of one length, each ending with its end-of-text token
            x = tower.embed(torch.cat([texts.prefix.expand(len(ids), -1), ids], dim=1), 0)
            rest = x.shape[1] - start
            for layer, block in enumerate(tower.blocks, 1):
                if layer in tokens:
                    new = tokens[layer].to(x.dtype).expand(len(x), -1, -1)
                    x = torch.cat([x[:, :start], new, x[:, -rest:]], dim=1)
                x = run_block(block, x, is_causal=True)
            return tower.project(tower.ln_final(x[:, -1]))

        # texts grouped by length, recomputed in chunks if there are many, in their original order
        recompute = len(order) > at_once and torch.is_grad_enabled()
        once = partial(checkpoint, encode, use_reentrant=False) if recompute else encode
        rows = [once(part) for rests in texts.rests for part in torch.split(rests, at_once)]
        return normalized(torch.cat(rows)[order.argsort()])

    def encode_images(self, tower: Any, images: Tensor) -> Tensor:
        """Encode images; normalised, [B, 2 D], or [B, D] without ``combine``."""
        return self._predicting(*self.image_features(tower, images))

    def encode_texts(
        self, tower: Any, texts: ArrangedTexts, classes_at_once: int = CLASSES_AT_ONCE
    ) -> Tensor:
        """Encode arranged class names; normalised, [C, 2 D], or [C, D] without ``combine``."""
        text = self.text_features(tower, texts, classes_at_once)
        return self._predicting(text, text)

    def _predicting(self, of_class: Tensor, representation: Tensor) -> Tensor:
        if not self.combine:
            return of_class
        parts = [self.share**0.5 * of_class, (1 - self.share) ** 0.5 * representation]
        return torch.cat(parts, dim=-1)

    def custom_loss(
        self, images: Any, texts: Any, classes_at_once: int, label_loss: Any
    ) -> dict[str, Tensor]:
        """α CE(f·t) + (1 − α) CE(r·t) + λ (1 − cos(f, f₀)) + λ (1 − cos(t, t₀)); ₀: frozen CLIP."""
        (image_tower, batch), (text_tower, names) = images, texts
        of_class, representation = self.image_features(image_tower, batch)
        text = self.text_features(text_tower, names, classes_at_once)
        with torch.no_grad():
            frozen, frozen_text = normalized(image_tower(batch)), normalized(text_tower(names))
        return {
            "ce": self.share * label_loss(of_class, text),
            "representation": (1 - self.share) * label_loss(representation, text),
            "image": self.weight * (1 - (of_class * frozen).sum(dim=-1).mean()),
            "text": self.weight * (1 - (text * frozen_text).sum(dim=-1).mean()),
        }
