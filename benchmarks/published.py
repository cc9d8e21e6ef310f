"""The published training step over open_clip's modules: the baseline of all ratios.

At every step the teacher's text tower encodes all class names, 77 tokens each, and its image tower
every image. All blocks run on all tokens. Both sides of a comparison share weights, but no code.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def image_features(visual: Any, pixels: Tensor, prompts: Tensor) -> Tensor:
    """Encode normalised images [B, 3, S, S] with visual prompts [J, n, W]; features [B, D], not normalised."""
    batch, length = len(pixels), prompts.shape[1]
    patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
    x = (
        torch.cat([visual.class_embedding.expand(batch, 1, -1), patches], dim=1)
        + visual.positional_embedding
    )
    x = visual.ln_pre(torch.cat([x, prompts[0].expand(batch, -1, -1)], dim=1))
    for layer, block in enumerate(visual.transformer.resblocks):
        if 0 < layer < len(prompts):
            x = torch.cat([x[:, :-length], prompts[layer].expand(batch, -1, -1)], dim=1)
        x = block(x)
    features: Tensor = visual.ln_post(x[:, 0]) @ visual.proj
    return features


def text_features(text: Any, ids: Tensor, context: Tensor, deep: Tensor) -> Tensor:
    """Encode C prompts, all tokens of them.

    Args:
        text: Object with a CLIP's ``token_embedding``, ``positional_embedding``, ``transformer``,
            ``ln_final`` and ``text_projection``.
        ids: Token ids [C, 77].
        context: Prompts of layer 0, [n, W], which replace tokens 1..n.
        deep: Prompts of the next layers, [J - 1, n, W].

    Returns:
        Features [C, D], not normalised.
    """
    classes, tokens = ids.shape
    after = 1 + len(context)
    mask = torch.full((tokens, tokens), float("-inf"), device=ids.device).triu(1)
    x = text.token_embedding(ids)
    x = (
        torch.cat([x[:, :1], context.expand(classes, -1, -1), x[:, after:]], dim=1)
        + text.positional_embedding
    )
    for layer, block in enumerate(text.transformer.resblocks):
        if 0 < layer <= len(deep):
            x = torch.cat([x[:, :1], deep[layer - 1].expand(classes, -1, -1), x[:, after:]], dim=1)
        x = block(x, attn_mask=mask)
    x = text.ln_final(x)
    features: Tensor = (
        x[torch.arange(classes, device=ids.device), ids.argmax(dim=-1)] @ text.text_projection
    )
    return features


class PublishedTeacher:
    """The tuned teacher, which encodes images and class names at every call.

    Args:
        visual: Image tower of open_clip.
        text: Object with the parts of the text tower.
        logit_scale: Factor on cosine similarities.
        ids: Token ids of the class names, [C, 77].
        vision_prompts: Visual prompts, [J, n, W].
        context: Context, [n, W].
        deep: Deep text prompts, [J - 1, n, W].
    """

    def __init__(
        self,
        visual: nn.Module,
        text: nn.Module,
        logit_scale: float,
        ids: Tensor,
        vision_prompts: Tensor,
        context: Tensor,
        deep: Tensor,
    ) -> None:
        self.visual = visual
        self.text = text
        self.logit_scale = logit_scale
        self.ids = ids
        self.vision_prompts = vision_prompts
        self.context = context
        self.deep = deep

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [B, C] of normalised images, and the normalised text features [C, D]."""
        images = F.normalize(image_features(self.visual, pixels, self.vision_prompts), dim=-1)
        texts = F.normalize(text_features(self.text, self.ids, self.context, self.deep), dim=-1)
        return self.logit_scale * images @ texts.T, texts


class PublishedStudent(nn.Module):
    """The student: visual prompts in a frozen image tower, and a projector.

    Args:
        visual: Image tower of open_clip, not trained.
        logit_scale: Factor on cosine similarities.
        prompts: Initial visual prompts, [J, n, W].
        in_dim: Width d of its embedding.
        out_dim: Width D of the teacher's.
    """

    def __init__(
        self, visual: nn.Module, logit_scale: float, prompts: Tensor, in_dim: int, out_dim: int
    ) -> None:
        super().__init__()
        self.visual = [visual]  # a list hides it from parameters()
        self.logit_scale = logit_scale
        self.prompts = nn.Parameter(prompts.detach().clone())
        self.projector = nn.Sequential(
            nn.Linear(in_dim, out_dim),
            nn.BatchNorm1d(out_dim),
            nn.ReLU(),
            nn.Linear(out_dim, out_dim),
        ).to(prompts.device)

    def forward(self, pixels: Tensor, texts: Tensor) -> Tensor:
        """Return the logits [B, C] of normalised images over text features [C, D]."""
        features = self.projector(image_features(self.visual[0], pixels, self.prompts))
        return self.logit_scale * F.normalize(features, dim=-1) @ texts.T


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, weight: float, temperature: float
) -> Tensor:
    """Compute λ · τ² · Σ p_t (log p_t − log p_s) / (B·C) of logits [B, C]."""
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    total = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return weight * temperature**2 * total / student_logits.numel()
