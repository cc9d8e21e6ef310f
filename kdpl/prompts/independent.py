"""Independently learnt visual and text prompts (IVLP, PromptSRC: arXiv 2307.06948, section 3.1).

With prompts in only one tower this is VPT or CoOp; without prompts it is the zero-shot CLIP.
"""

from torch import Tensor

from kdpl.clip.clip import Clip, ImageClip
from kdpl.clip.modules import normalized
from kdpl.clip.towers.image import ImageTower, promptable
from kdpl.clip.towers.text import CLASSES_AT_ONCE, ArrangedTexts, TextTower
from kdpl.prompts.method import PromptMethod
from kdpl.prompts.text import TextPrompts
from kdpl.prompts.vision import PromptConfig, VisionPrompts


class IndependentPrompts(PromptMethod):
    """Learnt prompts in each tower whose depth is above 0.

    Raises:
        ConfigError: The sizes do not fit the CLIP.
    """

    def __init__(
        self, vision: PromptConfig, text: PromptConfig, context: str | None, clip: ImageClip
    ) -> None:
        super().__init__(vision, text, context, clip)
        self.vision_prompts: VisionPrompts | None = None
        self.text_prompts: TextPrompts | None = None
        if vision.depth:
            self.vision_prompts = VisionPrompts(vision.length, vision.depth, clip.image_tower)
        if text.depth and isinstance(clip, Clip):
            self.text_prompts = TextPrompts(
                text.length, text.depth, context, clip.text_tower, clip.tokenize
            )

    @property
    def text_is_fixed(self) -> bool:
        """True without text prompts."""
        return self.text_prompts is None

    @property
    def tokens(self) -> Tensor | None:
        """The visual prompts, float32 [J, n, W], or None."""
        return None if self.vision_prompts is None else self.vision_prompts.tokens

    @property
    def images_are_plain(self) -> bool:
        """True without visual prompts."""
        # a subclass may encode images otherwise
        same = type(self).encode_images is IndependentPrompts.encode_images
        return same and self.tokens is None

    def encode_images(self, tower: ImageTower, images: Tensor) -> Tensor:
        """Encode images [B, 3, S, S] with visual prompts; normalised, float32 [B, embed_dim]."""
        tokens = self.tokens
        if tokens is None:
            return normalized(tower(images))
        return normalized(promptable(tower).with_prompts(images, tokens))

    def encode_texts(
        self, tower: TextTower, texts: ArrangedTexts, classes_at_once: int = CLASSES_AT_ONCE
    ) -> Tensor:
        """Encode arranged class names with text prompts; normalised, float32 [C, embed_dim]."""
        prompts = self.text_prompts
        return normalized(
            tower(texts) if prompts is None else prompts(tower, texts, classes_at_once)
        )
