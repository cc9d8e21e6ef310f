"""Context (CoOp, arXiv 2109.01134, section 3.2) and deep text prompts (arXiv 2307.06948, 3.1)."""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdpl.clip.modules import Float32Module, normalized
from kdpl.clip.tokens import Tokenizer
from kdpl.clip.towers.text import CLASSES_AT_ONCE, ArrangedTexts, TextTower, promptable_text
from kdpl.errors import ConfigError
from kdpl.prompts.vision import INIT_STD, require_size
from kdpl.runtime.class_names import ClassText

CONTEXT = "a photo of a"
"""CLIP's words before a class name."""


def prompt_texts(context: str | None, length: int, class_names: Sequence[str]) -> list[str]:
    """Return ``"{context} {name}."`` for each name, with ``length`` words for a missing context."""
    words = context if context is not None else " ".join(["X"] * length)
    return [f"{words} {name.replace('_', ' ')}.".lstrip() for name in class_names]


def flat_texts(texts: Sequence[ClassText]) -> tuple[list[str], list[int]]:
    """Return the texts of all C classes in one list, and the number of each class's, [C]."""
    several = [(text,) if isinstance(text, str) else text for text in texts]
    return [*chain.from_iterable(several)], [*map(len, several)]


def averaged(features: Tensor, counts: Sequence[int]) -> Tensor:
    """Average normalised features of texts [N, D] by class, normalised, [C, D].

    Features of a class with one text stay as they are.
    """
    if max(counts, default=1) == 1:
        return features
    parts = torch.split(features, [*counts])
    rows = [part[0] if len(part) == 1 else normalized(part.mean(dim=0)) for part in parts]
    return torch.stack(rows)


def tokenize_prompts(tokenize: Tokenizer, texts: Sequence[str], tower: TextTower) -> ArrangedTexts:
    """Tokenise prompts for a tower, on its device; a ConfigError if one exceeds its context."""
    ids = tokenize(list(texts))
    for text, row in zip(texts, ids, strict=True):
        if tokenize.fills(text, row):
            raise ConfigError(
                f"the prompt {text[:60]!r} fills all {len(row)} tokens that the text tower reads, "
                "so that its end may be lost: shorten the class name"
            )
    return tower.arrange(ids.to(next(tower.parameters()).device))


class TextPrompts(Float32Module):
    """A learnable context shared by all classes, and deep prompts for a text tower's next layers.

    The sequence is ``[start][context][class name]["."][end][padding]``, or what the CLIP's
    tokenizer makes of it. In layer 0 the context replaces the embeddings of its words, with
    positions added; each of the following ``depth - 1`` layers replaces the positions of the
    context by prompts of that layer. From layer ``depth`` on the tokens flow.

    The learnt ``context`` is float32 [n, W], and ``deep``, for layers 1..J-1, float32 [J - 1, n,
    W], drawn from N(0, 0.02²). A ConfigError if an argument does not fit.

    Args:
        length: Number of context tokens, n.
        depth: Number of layers with prompts, J; 1 to the number of layers in the tower. A tower of
            Hugging Face takes 1.
        context: Words whose token embeddings initialise the context, at least ``length`` tokens:
            the first ``length`` are learnt, the others stay fixed. None draws N(0, 0.02²).
    """

    def __init__(
        self, length: int, depth: int, context: str | None, tower: TextTower, tokenize: Tokenizer
    ) -> None:
        super().__init__()
        tower = promptable_text(tower, depth)
        require_size(length, depth, len(tower.blocks), "text")
        if context is None:
            start = torch.randn(length, tower.width) * INIT_STD
        else:
            ids = tokenize.words(context)
            if len(ids) < length:
                raise ConfigError(
                    f"the context {context!r} has {len(ids)} tokens, fewer than the text prompts' "
                    f"length {length}: give more words or a smaller length"
                )
            ids = ids[:length].to(tower.token_embedding.weight.device)
            start = tower.token_embedding(ids).detach()

        self.context = nn.Parameter(start.to(torch.float32, copy=True))
        self.deep = nn.Parameter(
            torch.randn(depth - 1, length, tower.width, dtype=torch.float32) * INIT_STD
        )
        if depth == 1:
            # a parameter that never gets a gradient stops DistributedDataParallel
            self.deep.requires_grad_(False)

    def forward(
        self, tower: TextTower, texts: ArrangedTexts, classes_at_once: int = CLASSES_AT_ONCE
    ) -> Tensor:
        """Encode arranged ``prompt_texts`` of C classes with the prompts as context.

        Returns [C, embed_dim], not normalised. With gradients, ``classes_at_once`` limits the
        classes whose activations are kept at a time.
        """
        return cast(Tensor, promptable_text(tower)(texts, self.context, self.deep, classes_at_once))


@torch.no_grad()
def ensemble_features(
    tower: TextTower,
    tokenize: Tokenizer,
    class_names: Sequence[ClassText],
    templates: Sequence[Callable[[str], str]],
) -> Tensor:
    """Average frozen text features over templates (PromptSRC, section 3.2.3), [C, embed_dim].

    The mean is taken before normalising, as in the published code; that over several texts of a
    class afterwards. Underscores of the C names become spaces. A ConfigError for a name that is too
    long for the tower's context.
    """
    # one template at a time, so that only one set of features is in memory
    flat, counts = flat_texts(class_names)
    names = [name.replace("_", " ") for name in flat]
    texts = ([template(name) for name in names] for template in templates)
    features = (tower(tokenize_prompts(tokenize, group, tower)).float() for group in texts)
    return averaged(F.normalize(reduce(torch.add, features) / len(templates), dim=-1), counts)
