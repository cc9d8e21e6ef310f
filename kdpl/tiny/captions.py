"""Captions that the miniature CLIPs are pretrained on."""

from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from kdpl.tiny.glyphs import CLASSES, GlyphClass
from kdpl.tiny.models import CONTEXT_LENGTH

NOUNS = {
    "digit": ("digit {}", "number {}", "{}", "numeral {}"),
    "letter": ("letter {}", "character {}", "symbol {}"),
}
"""Nouns for each kind of glyph; "{}" stands for its name."""

PLAIN_TEMPLATES = (
    *("a photo of a {}.", "a photo of the {}.", "an image of the {}.", "a picture of the {}.", "a drawing of the {}."),
    *("a blurry photo of the {}.", "a sign showing the {}.", "the {}.", "a printed {}.", "a rendering of a {}.", "{}"),
)
"""Captions as people write them."""

PLAIN_SHARE = 0.5
"""Share of plain captions; the others use the zero-shot templates that the tuning of a teacher averages."""


class CaptionBank(NamedTuple):
    """The captions of all classes, in a vocabulary of the tokens that occur in them.

    Attributes:
        tokens: Indices into ``token_ids``, int64 [C, N, 32].
        shares: Probability of each of the N captions of a class, float32 [N].
        token_ids: Ids in CLIP's vocabulary, ascending, int64 [T]; a CLIP text tower expects end-of-text last.
    """

    tokens: Tensor
    shares: Tensor
    token_ids: Tensor

    def sample(self, generator: Generator) -> Tensor:
        """Draw the index of one caption for each class, int64 [C]."""
        return torch.multinomial(self.shares, len(self.tokens), replacement=True, generator=generator)


def wide_templates() -> tuple[str, ...]:
    """Return the 60 templates that PromptSRC averages (its section 3.1), with "{}" for the name."""
    from kdpl.clip.loading import PROMPTSRC_TEMPLATES

    return tuple(template("{}") for template in PROMPTSRC_TEMPLATES)


def captions_of(glyph_class: GlyphClass, templates: tuple[str, ...]) -> list[str]:
    """Return every template with every noun for the class."""
    nouns = [noun.format(glyph_class.name) for noun in NOUNS[glyph_class.kind]]
    return [template.format(noun) for template in templates for noun in nouns]


def caption_bank(plain_share: float = PLAIN_SHARE) -> CaptionBank:
    """Tokenise the captions of all classes; a ``plain_share`` of 1 leaves the wide templates out."""
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=CONTEXT_LENGTH)
    most_nouns = max(map(len, NOUNS.values()))
    tokens, shares = [], []
    for templates, share in ((PLAIN_TEMPLATES, plain_share), (wide_templates(), 1 - plain_share)):
        if share > 0:
            # classes with fewer nouns repeat captions: all need the same number
            count = len(templates) * most_nouns
            captions = [list(islice(cycle(captions_of(each, templates)), count)) for each in CLASSES]
            tokens.append(torch.stack([tokenizer(texts) for texts in captions]))
            shares.append(torch.full((count,), share / count))
    token_ids, compact = torch.unique(torch.cat(tokens, dim=1), return_inverse=True)
    return CaptionBank(compact, torch.cat(shares), token_ids)
