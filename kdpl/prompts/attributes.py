"""Text prompts that contain attribute names (ATPrompt, arXiv 2412.09442).

The authors publish the shallow version with CoOp and the deep version with MaPLe. Their code does
not show how they combine it with PromptKD, their best result; here it is the text prompt of any
teacher with independent prompts.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from kdpl.clip.clip import Clip, ImageClip
from kdpl.clip.tokens import Tokenizer
from kdpl.clip.towers.text import CLASSES_AT_ONCE, ArrangedTexts, TextTower, promptable_text
from kdpl.errors import ConfigError
from kdpl.prompts.independent import IndependentPrompts
from kdpl.prompts.text import TextPrompts, prompt_texts, tokenize_prompts
from kdpl.prompts.vision import PromptConfig

_ATTRIBUTE_STD = 0.01


class AttributeTextPrompts(TextPrompts):
    """A context that begins with attributes, each with learnt tokens before its name.

    The sequence is ``[start][n tokens][name] … [n tokens][name][context][class name]["."][end]``.
    Attribute names keep their embeddings. The following ``depth - 1`` layers replace the context
    alone; the tokens and names of attributes flow through. The learnt ``attribute_tokens`` are
    float32 [A, n, W], from N(0, 0.01²).
    """

    def __init__(
        self,
        attributes: Sequence[str],
        length: int,
        depth: int,
        context: str | None,
        tower: TextTower,
        tokenize: Tokenizer,
    ) -> None:
        super().__init__(length, depth, context, tower, tokenize)
        names = [tokenize.words(name) for name in attributes]
        self.lengths = [len(ids) for ids in names]
        self.register_buffer("names", torch.cat(names), persistent=False)
        tokens = torch.randn(len(names), *self.context.shape)
        self.attribute_tokens = nn.Parameter(tokens * _ATTRIBUTE_STD)

    def forward(
        self, tower: TextTower, texts: ArrangedTexts, classes_at_once: int = CLASSES_AT_ONCE
    ) -> Tensor:
        """Encode arranged texts as ``TextPrompts`` does, not normalised, [C, embed_dim]."""
        tower = promptable_text(tower)
        embedded = tower.token_embedding(cast(Tensor, self.names)).split(self.lengths)
        parts = [
            part for pair in zip(self.attribute_tokens, embedded, strict=True) for part in pair
        ]
        whole = torch.cat([*parts, self.context])
        return cast(Tensor, tower(texts, whole, self.deep, classes_at_once))


class AttributePrompts(IndependentPrompts):
    """Independent prompts with attributes in the texts.

    Each attribute is preceded by as many learnt tokens as the context has. ``text_prompts.depth`` 1
    is the shallow version; larger values are the deep version. As published, ``context`` is None.

    Args:
        vision: As in ``PromptMethod``, like ``clip``.
        text: Size of the text prompts without the attributes.
        context: Words that initialise the context; None for noise.
        attributes: Names of the attributes, each of one or more words.

    Raises:
        ConfigError: The attributes are missing or empty, or the sizes do not fit the CLIP.
    """

    def __init__(
        self,
        vision: PromptConfig,
        text: PromptConfig,
        context: str | None,
        clip: ImageClip,
        attributes: list[str],
    ) -> None:
        # depth 0: the text prompts are made below, so the base class must not check their context
        super().__init__(vision, PromptConfig(depth=0), context or "", clip)
        self.text_config = text
        self.context = context
        self.attributes = attributes

        named = all(name.strip() for name in attributes)
        if not attributes or not named or not text.depth:
            raise ConfigError(
                f"attributes is {attributes} and text_prompts.depth {text.depth}, expected names, "
                "and 1 or more: correct them"
            )
        if isinstance(clip, Clip):
            sizes = text.length, text.depth
            self.text_prompts = AttributeTextPrompts(
                attributes, *sizes, context, clip.text_tower, clip.tokenize
            )

    def arrange(self, names: Sequence[str], tower: TextTower, tokenize: Tokenizer) -> ArrangedTexts:
        """Tokenise C class names after attributes and context; errors as in the base class."""
        # placeholders reserve the positions of the learnt tokens
        placeholder = " ".join(["X"] * self.text_config.length)
        words = [f"{placeholder} {name}" for name in self.attributes]
        before = " ".join([*words, self.context or placeholder])
        return tokenize_prompts(tokenize, prompt_texts(before, 0, names), tower)
