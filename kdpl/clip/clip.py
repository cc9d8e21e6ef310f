"""A loaded CLIP, in parts."""

from dataclasses import dataclass

from kdpl.clip.identity import ClipConfig, ClipIdentity, Preprocessing
from kdpl.clip.modules import fingerprint
from kdpl.clip.tokens import Tokenizer
from kdpl.clip.towers.image import ImageTower
from kdpl.clip.towers.text import TextTower


@dataclass(frozen=True)
class ImageClip:
    """Image half of a frozen CLIP, or a network that is not a CLIP: all that stage 2 needs."""

    image_tower: ImageTower
    # scale of cosine similarities, already exponentiated, 100 for OpenAI's weights; None for a
    # network that is not a CLIP
    logit_scale: float | None
    identity: ClipIdentity

    @classmethod
    def of(
        cls, tower: ImageTower, logit_scale: float | None, config: ClipConfig, quick_gelu: bool
    ) -> "ImageClip":
        """Name an image tower by its config and the digest of its weights."""
        digest = fingerprint(tower.visual.state_dict().items())
        tag = config.pretrained or config.model
        return cls(tower, logit_scale, ClipIdentity(config.model, tag, quick_gelu, digest))

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of the tower's images."""
        return self.image_tower.preprocessing

    def with_text(self, tower: TextTower, tokenize: Tokenizer) -> "Clip":
        """Return the whole CLIP, which has a text tower as well."""
        digest = fingerprint(tower.state_dict().items())
        return Clip(**vars(self), text_tower=tower, tokenize=tokenize, text_fingerprint=digest)


@dataclass(frozen=True)
class Clip(ImageClip):
    """Frozen CLIP in parts; ``tokenize`` turns texts into token ids [N, context_length]."""

    logit_scale: float
    text_tower: TextTower
    tokenize: Tokenizer
    text_fingerprint: str
