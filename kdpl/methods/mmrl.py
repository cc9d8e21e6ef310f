"""Representation tokens in both towers (MMRL, arXiv 2503.08497, section 3).

Both kinds of logits have the same text features t: α f·t + (1 − α) r·t, with an image's class
feature f and its representation feature r, is the inner product of the unit vectors
[√α f, √(1 − α) r] and [√α t, √(1 − α) t]. These are what stage 2 reads, of twice the CLIP's width.
The authors' templates have words behind the class name too; here it is the context alone.
"""

from copy import deepcopy
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kdpl.clip import Clip, ImageClip
from kdpl.clip.block import finish, in_projection, merge_heads, run_block, split_heads
from kdpl.clip.class_token import ClassTokenTower
from kdpl.clip.text import CLASSES_AT_ONCE, ArrangedTexts, PromptableTextTower
from kdpl.errors import ConfigError
from kdpl.prompts import PromptConfig, PromptMethod
from kdpl.prompts.method import normalized
from kdpl.prompts.vision import INIT_STD


class RepresentationTokens(PromptMethod):
    """Tokens of a space that both towers share, mapped into each of several upper layers.

    In these layers they are replaced beside an image's tokens, and behind a text's start token;
    then they flow. The learnt ``space`` is float32 [K, width], from N(0, 0.02²); ``maps`` has a
    Linear for each tower and layer, and those of a tower start alike; ``projection``, [W, D], maps
    the mean of an image's last representation tokens to r. ``vision`` and ``text`` are one size: K,
    and the number of layers with tokens; published are 5 and 7.

    Args:
        first_layer: The first layer with tokens, counted from 1.
        width: Width of the space.
        share: α, in loss and prediction.
        weight: λ, of the regularisation.
        combine: Predict by both features, as published for classes that it was tuned on; false: by
            f alone, as published for novel ones. The loss is the same.

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
        self._zero_shot: tuple[ArrangedTexts, Tensor] | None = None

        towers: dict[str, Any] = {"image": clip.image_tower}
        if isinstance(clip, Clip):
            towers["text"] = clip.text_tower
        kinds = {type(tower) for tower in towers.values()}
        if not kinds <= {ClassTokenTower, PromptableTextTower}:
            raise ConfigError(
                f"{clip.identity.model} has other towers than CLIP's own transformers, which "
                "representation tokens need: choose another CLIP"
            )
        layers = min(len(tower.blocks) for tower in towers.values())
        known = vision == text and vision.length > 0 and 0 < share < 1 and context is not None
        if not known or not 0 < first_layer <= first_layer + vision.depth - 1 <= layers:
            raise ConfigError(
                f"sizes {vision} and {text} from layer {first_layer} on, share {share} and context "
                f"{context!r} do not fit {layers} layers: give one size for both towers, a share "
                "between 0 and 1, and words"
            )
        own_width, out = towers["image"].width, clip.image_tower.embed_dim
        self.space = nn.Parameter(torch.randn(vision.length, width) * INIT_STD)
        self.projection = nn.Parameter(torch.randn(own_width, out) * own_width**-0.5)
        self.maps = nn.ModuleDict()
        for kind, tower in towers.items():
            first = nn.Linear(width, tower.width, dtype=torch.float32)
            self.maps[kind] = nn.ModuleList(deepcopy(first) for _ in range(vision.depth))

    def _tokens(self, kind: str) -> dict[int, Tensor]:
        """Tokens [K, W] of a tower by layer, float32 under autocast too."""
        with torch.autocast(self.space.device.type, enabled=False):
            tokens = [mapped(self.space) for mapped in cast(nn.ModuleList, self.maps[kind])]
        return dict(enumerate(tokens, self.first_layer))

    def image_features(self, tower: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images into f and r; normalised, each [B, D]."""
        x, tokens = tower.norm(tower.embed(images)), self._tokens("image")
        length = x.shape[1]
        for layer, block in enumerate(tower.blocks, 1):
            if layer in tokens:
                own = tokens[layer].to(x.dtype).expand(x.shape[0], -1, -1)
                x = torch.cat([x[:, :length], own], dim=1)
            x = run_block(block, x)
        x = tower.visual.ln_post(torch.cat([x[:, :1], x[:, length:]], dim=1))
        with torch.autocast(x.device.type, enabled=False):
            representation = x[:, 1:].mean(dim=1).float() @ self.projection
        return normalized(x[:, 0] @ tower.visual.proj), normalized(representation)

    def text_features(self, tower: Any, texts: ArrangedTexts, at_once: int) -> Tensor:
        """Encode arranged class names into t; normalised, [C, D]."""
        order, encode = torch.cat(texts.places), partial(_encode, tower, self._tokens("text"))
        if len(order) > at_once and torch.is_grad_enabled():
            encode = partial(checkpoint, encode, use_reentrant=False)
        parts = (part for rests in texts.rests for part in torch.split(rests, at_once))
        features = torch.cat(
            [encode(torch.cat([texts.prefix.expand(len(p), -1), p], dim=1)) for p in parts]
        )
        return normalized(texts.averaged(torch.zeros_like(features).index_copy(0, order, features)))

    def encode_images(self, tower: Any, images: Tensor) -> Tensor:
        """Encode images; normalised, [B, 2 D], or [B, D] without ``combine``."""
        of_class, representation = self.image_features(tower, images)
        return self._both(of_class, representation) if self.combine else of_class

    def encode_texts(
        self, tower: Any, texts: ArrangedTexts, classes_at_once: int = CLASSES_AT_ONCE
    ) -> Tensor:
        """Encode arranged class names; normalised, [C, 2 D], or [C, D] without ``combine``."""
        text = self.text_features(tower, texts, classes_at_once)
        return self._both(text, text) if self.combine else text

    def _both(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.cat([self.share**0.5 * one, (1 - self.share) ** 0.5 * other], dim=-1)

    def own_loss(self, images: Any, texts: Any, at_once: int, label_loss: Any) -> dict[str, Tensor]:
        """α CE(f·t) + (1 − α) CE(r·t) + λ (1 − cos(f, f₀)) + λ (1 − cos(t, t₀)); ₀: frozen CLIP."""
        (image_tower, batch), (text_tower, names) = images, texts
        of_class, representation = self.image_features(image_tower, batch)
        text = self.text_features(text_tower, names, at_once)
        with torch.no_grad():
            frozen = normalized(image_tower(batch))
            if self._zero_shot is None or self._zero_shot[0] is not names:
                self._zero_shot = names, normalized(text_tower(names))
        return {
            "ce": self.share * label_loss(of_class, text),
            "representation": (1 - self.share) * label_loss(representation, text),
            "image": self.weight * (1 - (of_class * frozen).sum(dim=-1).mean()),
            "text": self.weight * (1 - (text * self._zero_shot[1]).sum(dim=-1).mean()),
        }


def _encode(tower: PromptableTextTower, tokens: dict[int, Tensor], ids: Tensor) -> Tensor:
    """Encode texts of one length, ids [N, L] that end with their end of text: [N, D]."""
    x = tower.embed(ids, 0)
    rest = x.shape[1] - tower.start
    for layer, block in enumerate(tower.blocks, 1):
        if layer in tokens:
            own = tokens[layer].to(x.dtype).expand(len(x), -1, -1)
            x = torch.cat([x[:, : tower.start], own, x[:, -rest:]], dim=1)
        q, k, v = split_heads(block, in_projection(block, block.ln_1(x)))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = finish(block, x, merge_heads(attended))
    return tower.project(tower.ln_final(x[:, -1]))
