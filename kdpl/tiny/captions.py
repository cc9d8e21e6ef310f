"""Captions, the texts that the miniature CLIPs are pretrained on."""

from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Generator, Tensor

from kdpl.tiny.glyphs import CLASSES, GlyphClass
from kdpl.tiny.models import CONTEXT_LENGTH

NOUNS = {
    "digit": ("digit {}", "number {}", "{}", "numeral {}"),
    "letter": ("letter {}", "character {}", "symbol {}"),
}
"""How a thing of each kind is called; "{}" takes its name."""

PLAIN_TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "an image of the {}.",
    "a picture of the {}.",
    "a drawing of the {}.",
    "a blurry photo of the {}.",
    "a sign showing the {}.",
    "the {}.",
    "a printed {}.",
    "a rendering of a {}.",
    "{}",
)
"""Captions as people write them."""

PLAIN_SHARE = 0.5
"""Half of the captions are plain; the other half are CLIP's zero-shot templates, which tuning a teacher averages."""


@dataclass(frozen=True)
class CaptionBank:
    """The captions of every class, in a vocabulary of the tokens that occur in them.

    Attributes:
        tokens: compact token ids, int64 [C, N, 32]; the place of each id in ``token_ids``.
        shares: how often each of the N captions of a class is drawn, float32 [N], sums to 1.
        token_ids: the ids in CLIP's vocabulary, ascending, int64 [T]. The end-of-text token stays the highest, which
            is how a CLIP text tower finds it.
    """

    tokens: Tensor
    shares: Tensor
    token_ids: Tensor

    def sample(self, generator: Generator) -> Tensor:
        """Draw the place of one caption for each class, int64 [C]."""
        return torch.multinomial(self.shares, len(self.tokens), replacement=True, generator=generator)


def wide_templates() -> tuple[str, ...]:
    """The 60 templates that PromptSRC averages (its section 3.1), with "{}" for the name."""
    from kdpl.clip import PROMPTSRC_TEMPLATES

    return tuple(template("{}") for template in PROMPTSRC_TEMPLATES)


def captions_of(glyph_class: GlyphClass, templates: tuple[str, ...]) -> list[str]:
    """Every template with every noun for the class, in a fixed order."""
    nouns = [noun.format(glyph_class.name) for noun in NOUNS[glyph_class.kind]]
    return [template.format(noun) for template in templates for noun in nouns]


def caption_bank(plain_share: float = PLAIN_SHARE) -> CaptionBank:
    """Tokenise the captions of all classes.

    Args:
        plain_share: share of the drawn captions that are of the plain templates, the rest being of the wide ones;
            at 1 the wide ones are left out.
    """
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=CONTEXT_LENGTH)
    groups = [(PLAIN_TEMPLATES, plain_share), (wide_templates(), 1 - plain_share)]
    most_nouns = max(len(nouns) for nouns in NOUNS.values())
    tokens, shares = [], []
    for templates, share in groups:
        if share == 0:
            continue
        # Kinds with fewer nouns go round again, so that every class has as many captions.
        count = len(templates) * most_nouns
        tokens.append(
            torch.stack([tokenizer(list(islice(cycle(captions_of(one, templates)), count))) for one in CLASSES])
        )
        shares.append(torch.full((count,), share / count))
    token_ids, compact = torch.unique(torch.cat(tokens, dim=1), return_inverse=True)
    return CaptionBank(compact, torch.cat(shares), token_ids)
