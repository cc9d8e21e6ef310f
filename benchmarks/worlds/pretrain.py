"""Pretrain a miniature CLIP on printed glyphs and captions: ``python -m benchmarks.worlds.pretrain tiny-teacher``.

No handwritten digit is used: the step from printed glyphs to handwriting is what the quickstart
learns. Training the weights in the package (4,000 steps, seed 1) took 18 minutes on one busy core
for the teacher and 7 for each student.

Two towers this small stay at chance when they are trained together from the start. So the text
tower first learns that captions of one class agree. Then the image tower is trained against the
frozen text tower, and finally both.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.optim import AdamW, Optimizer

from benchmarks.worlds.glyphs import CLASSES, GlyphBank, augment, render_bank
from kdpl.clip import PROMPTSRC_TEMPLATES
from kdpl.clip.miniatures.models import CONFIGS, CONTEXT_LENGTH, TAG, weights_path
from kdpl.runtime.files import atomic_path


@dataclass(frozen=True)
class Recipe:
    """Settings of a pretraining."""

    learning_rate: float  # peak, of the image tower
    text_learning_rate: float  # peak, of the text tower in contrastive training
    steps: int = 4000  # of contrastive training
    batch_size: int = 128
    warmup_steps: int = 30  # linear, followed by a cosine to 0
    weight_decay: float = 0.05  # of the image tower's matrices
    agreement_steps: int = 150  # in which only the text tower is trained
    locked_share: float = 0.7  # of the contrastive steps, in which the text tower is frozen
    initial_logit_scale: float = 20.0  # factor on cosine similarities


RECIPES = {
    "tiny-teacher": Recipe(learning_rate=1.5e-3, text_learning_rate=4.5e-4),
    "tiny-student": Recipe(learning_rate=3e-3, text_learning_rate=9e-4),
    "tiny-resnet": Recipe(learning_rate=3e-3, text_learning_rate=9e-4),
}

PLAIN_TEMPLATES = (
    *(
        "a photo of a {}.",
        "a photo of the {}.",
        "an image of the {}.",
        "a picture of the {}.",
        "a drawing of the {}.",
    ),
    *(
        "a blurry photo of the {}.",
        "a sign showing the {}.",
        "the {}.",
        "a printed {}.",
        "a rendering of a {}.",
        "{}",
    ),
)
"""Captions as people write them, half of all; the others use the templates that the tuning of a teacher averages."""


class CaptionBank(NamedTuple):
    """The captions of all classes, in a vocabulary of the tokens that occur in them."""

    tokens: Tensor  # indices into token_ids, int64 [C, N, 32]
    shares: Tensor  # probability of each of the N captions of a class, float32 [N]
    token_ids: Tensor  # ids in CLIP's vocabulary, int64 [T]; ascending, as a text tower expects end-of-text last

    def sample(self, generator: Generator) -> Tensor:
        """Draw the index of one caption for each class, int64 [C]."""
        return torch.multinomial(
            self.shares, len(self.tokens), replacement=True, generator=generator
        )


def caption_bank() -> CaptionBank:
    """Tokenise the captions of all classes: every template with every noun."""
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)
    most_nouns = max(len(each.nouns) for each in CLASSES)
    tokens, shares = [], []
    for templates in (PLAIN_TEMPLATES, [template("{}") for template in PROMPTSRC_TEMPLATES]):
        # classes with fewer nouns repeat captions: all need the same number
        count = len(templates) * most_nouns
        captions = (
            [template.format(noun) for template in templates for noun in each.nouns]
            for each in CLASSES
        )
        tokens.append(
            torch.stack([tokenizer(list(islice(cycle(texts), count))) for texts in captions])
        )
        shares.append(torch.full((count,), 0.5 / count))
    token_ids, compact = torch.unique(torch.cat(tokens, dim=1), return_inverse=True)
    return CaptionBank(compact, torch.cat(shares), token_ids)


def build_model(name: str, vocab_size: int, seed: int) -> open_clip.CLIP:
    """Initialise a miniature CLIP with a vocabulary of ``vocab_size`` tokens, without affecting the global RNG."""
    config = CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CLIP(
            **{**config, "text_cfg": {**config["text_cfg"], "vocab_size": vocab_size}}
        )


def learn_agreement(
    model: open_clip.CLIP, captions: CaptionBank, steps: int, generator: Generator
) -> list[float]:
    """Train only the text tower, to make captions of the same class similar; returns the loss of each step."""
    optimizer = AdamW(_text_parameters(model), lr=1e-3, weight_decay=0.0)
    classes = torch.arange(len(CLASSES))
    losses = []
    for step in range(steps):
        _set_learning_rate(optimizer, min(1.0, (step + 1) / 20))
        places = torch.cat([captions.sample(generator), captions.sample(generator)])
        features = model.encode_text(captions.tokens[classes.repeat(2), places], normalize=True)
        first, second = features.chunk(2)
        logits = 20 * first @ second.T
        loss = (F.cross_entropy(logits, classes) + F.cross_entropy(logits.T, classes)) / 2
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


def contrastive_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Compute the mean of InfoNCE in both directions, of images of ``classes`` [B] against all captions, [B, C].

    A text's target is uniform over its images; texts without an image are left out.
    """
    belongs = F.one_hot(classes, logits.shape[1]).to(logits.dtype)
    present = belongs.any(dim=0)
    targets = (belongs / belongs.sum(dim=0).clamp(min=1)).T[present]
    return (F.cross_entropy(logits, classes) + F.cross_entropy(logits.T[present], targets)) / 2


def train_contrastively(
    model: open_clip.CLIP,
    captions: CaptionBank,
    glyphs: GlyphBank,
    recipe: Recipe,
    generator: Generator,
) -> Iterator[tuple[float, float]]:
    """Train the image tower, and the text tower once its locked share is over; yields loss and accuracy of a step."""
    statistics = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(recipe.initial_logit_scale))
        locked_features = torch.stack(
            [model.encode_text(tokens, normalize=True) for tokens in captions.tokens]
        )
    matrices = [p for p in model.visual.parameters() if p.ndim >= 2]
    others = [*(p for p in model.visual.parameters() if p.ndim < 2), model.logit_scale]
    groups = [
        {"params": matrices, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
        {"params": others, "lr": recipe.learning_rate, "weight_decay": 0.0},
        {"params": _text_parameters(model), "lr": recipe.text_learning_rate, "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, betas=(0.9, 0.98))
    every_class = torch.arange(len(CLASSES))
    for step in range(recipe.steps):
        warmup = min(1.0, (step + 1) / recipe.warmup_steps)
        _set_learning_rate(optimizer, warmup * (1 + math.cos(math.pi * step / recipe.steps)) / 2)
        classes = torch.randint(0, len(CLASSES), (recipe.batch_size,), generator=generator)
        images = (augment(glyphs.sample(classes, generator), generator) - mean) / std
        places = captions.sample(generator)
        # weights and loss stay float32
        with torch.autocast("cpu", torch.bfloat16):
            image_features = model.encode_image(images)
            if step < recipe.locked_share * recipe.steps:
                text_features = locked_features[every_class, places]
            else:
                text_features = model.encode_text(captions.tokens[every_class, places])
        image_features, text_features = (
            F.normalize(x.float(), dim=-1) for x in (image_features, text_features)
        )
        logits = model.logit_scale.exp() * image_features @ text_features.T
        loss = contrastive_loss(logits, classes)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        yield loss.item(), (logits.argmax(dim=1) == classes).float().mean().item()


def pretrain(name: str, recipe: Recipe, seed: int) -> tuple[open_clip.CLIP, CaptionBank]:
    """Pretrain a model from scratch, and return it with its captions; on one thread a seed gives the same weights."""
    glyphs, captions = render_bank(), caption_bank()
    generator = Generator().manual_seed(seed)
    model = build_model(name, len(captions.token_ids), seed)
    learn_agreement(model, captions, recipe.agreement_steps, generator)
    steps = train_contrastively(model, captions, glyphs, recipe, generator)
    for number, (loss, accuracy) in enumerate(steps, start=1):
        if number % 250 == 0:
            print(
                f"step {number} of {recipe.steps}: loss {loss:.3f}, accuracy {accuracy:.0%}",
                flush=True,
            )
    return model, captions


def save_compact(
    path: Path,
    state_dict: Mapping[str, Tensor],
    token_ids: Tensor,
    *,
    name: str,
    steps: int,
    seed: int,
) -> None:
    """Write a model as float16 safetensors, atomically, with one token embedding for each of the ``token_ids`` [T].

    Name, contrastive steps and seed go into the metadata.
    """
    tensors = {key: value.detach().half().contiguous() for key, value in state_dict.items()}
    # half precision would save two bytes and change every logit by up to 0.2 %
    tensors["logit_scale"] = state_dict["logit_scale"].detach().float()
    tensors["token_ids"] = token_ids.int()
    about = {
        "format_version": 1,
        "model": name,
        "tag": TAG,
        "steps": steps,
        "seed": seed,
        "quick_gelu": False,
    }
    with atomic_path(path) as unfinished:
        save_file(
            tensors, unfinished, metadata={key: json.dumps(value) for key, value in about.items()}
        )


def _text_parameters(model: open_clip.CLIP) -> list[nn.Parameter]:
    parameters = model.named_parameters()
    return [p for name, p in parameters if not name.startswith("visual.") and name != "logit_scale"]


def _set_learning_rate(optimizer: Optimizer, share: float) -> None:
    """Set every group to ``share`` of its peak learning rate."""
    for group in optimizer.param_groups:
        group.setdefault("peak_lr", group["lr"])
        group["lr"] = share * group["peak_lr"]


def main(arguments: list[str] | None = None) -> None:
    """Pretrain a model and write its weights."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.worlds.pretrain", description=__doc__.split("\n")[0]
    )
    parser.add_argument("name", choices=CONFIGS, help="the miniature CLIP to train")
    parser.add_argument(
        "--steps", type=int, default=Recipe.steps, help="contrastive steps (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of weights and data (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="file to write (default: the one in the package)")
    options = parser.parse_args(arguments)
    # results depend on the number of threads, and must not depend on the number of cores
    torch.set_num_threads(1)
    model, captions = pretrain(
        options.name, replace(RECIPES[options.name], steps=options.steps), options.seed
    )
    about = {"name": options.name, "steps": options.steps, "seed": options.seed}
    save_compact(
        options.out or weights_path(options.name), model.state_dict(), captions.token_ids, **about
    )


if __name__ == "__main__":
    main()
