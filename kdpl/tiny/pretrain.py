"""Pretrain a miniature CLIP on printed glyphs and captions: ``python -m kdpl.tiny.pretrain teacher``.

Not one handwritten digit is looked at in here: from printed glyphs to handwriting is the gap that the quickstart
closes. The weights in the package (4,000 steps, seed 1) took 18 minutes of one core of a busy
2-core machine for the teacher and 7 for each of the students.

Trained together from the start, two towers this small stay at chance. What works is: let the text tower first learn
that the captions of one thing agree, then train the image tower against it while it stands still, then both.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from torch import Generator, Tensor, nn
from torch.optim import AdamW, Optimizer

from kdpl.errors import KdplError
from kdpl.tiny.captions import CaptionBank, caption_bank
from kdpl.tiny.glyphs import CLASSES, GlyphBank, augment, render_bank
from kdpl.tiny.models import compact_config, save_compact, weights_path


@dataclass(frozen=True)
class Recipe:
    """Settings of one pretraining.

    Attributes:
        learning_rate: peak learning rate of the image tower.
        text_learning_rate: peak learning rate of the text tower once it is free.
        steps: contrastive steps.
        batch_size: images a step.
        warmup_steps: steps of linear warm-up, before a cosine to 0.
        weight_decay: on the image tower's matrices.
        agreement_steps: steps in which the text tower learns alone.
        locked_share: share of the steps in which the text tower stands still.
        initial_logit_scale: CLIP's temperature at the start, as exp(logit_scale).
    """

    learning_rate: float
    text_learning_rate: float
    steps: int = 4000
    batch_size: int = 128
    warmup_steps: int = 30
    weight_decay: float = 0.05
    agreement_steps: int = 150
    locked_share: float = 0.7
    initial_logit_scale: float = 20.0


RECIPES = {
    "tiny-teacher": Recipe(learning_rate=1.5e-3, text_learning_rate=4.5e-4),
    "tiny-student": Recipe(learning_rate=3e-3, text_learning_rate=9e-4),
    "tiny-resnet": Recipe(learning_rate=3e-3, text_learning_rate=9e-4),
}

MAX_LOGIT_SCALE = 100.0
AGREEMENT_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Step:
    """What one contrastive step gave: its number from 1, its loss, and the share of images told right."""

    number: int
    loss: float
    accuracy: float


def build_model(name: str, vocab_size: int, seed: int) -> open_clip.CLIP:
    """A freshly initialised miniature CLIP for a vocabulary of ``vocab_size`` tokens; the global RNG stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CLIP(**compact_config(name, vocab_size))


def learn_agreement(model: open_clip.CLIP, captions: CaptionBank, steps: int, generator: Generator) -> list[float]:
    """Train the text tower alone: of all classes' captions, two of one class are the most alike.

    Returns:
        The loss of every step.
    """
    optimizer = AdamW(_text_parameters(model), lr=AGREEMENT_LEARNING_RATE, weight_decay=0.0)
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
    """Image-to-text and text-to-image InfoNCE where several images of a batch may belong to one text.

    Args:
        logits: images against the captions of all classes, [B, C].
        classes: the class of each image, int64 [B].

    Returns:
        The mean of the two directions. A text's target is spread evenly over its images; texts without an image in
        the batch are left out of the second direction.
    """
    belongs = F.one_hot(classes, logits.shape[1]).to(logits.dtype)
    present = belongs.any(dim=0)
    targets = (belongs / belongs.sum(dim=0).clamp(min=1)).T[present]
    return (F.cross_entropy(logits, classes) + F.cross_entropy(logits.T[present], targets)) / 2


def train_contrastively(
    model: open_clip.CLIP, captions: CaptionBank, glyphs: GlyphBank, recipe: Recipe, generator: Generator
) -> Iterator[Step]:
    """Train the image tower against the captions, and in the last part of the steps the text tower with it."""
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        model.logit_scale.fill_(math.log(recipe.initial_logit_scale))
        locked_features = torch.stack([model.encode_text(tokens, normalize=True) for tokens in captions.tokens])
    optimizer = _contrastive_optimizer(model, recipe)
    every_class = torch.arange(len(CLASSES))
    for step in range(recipe.steps):
        warmup = min(1.0, (step + 1) / recipe.warmup_steps)
        _set_learning_rate(optimizer, warmup * (1 + math.cos(math.pi * step / recipe.steps)) / 2)
        classes = torch.randint(0, len(CLASSES), (recipe.batch_size,), generator=generator)
        images = (augment(glyphs.sample(classes, generator), generator) - mean) / std
        places = captions.sample(generator)
        # bfloat16 is for the towers' arithmetic; the weights and the loss stay float32.
        with torch.autocast("cpu", torch.bfloat16):
            image_features = model.encode_image(images)
            if step < recipe.locked_share * recipe.steps:
                text_features = locked_features[every_class, places]
            else:
                text_features = model.encode_text(captions.tokens[every_class, places])
        image_features, text_features = (F.normalize(x.float(), dim=-1) for x in (image_features, text_features))
        logits = model.logit_scale.exp() * image_features @ text_features.T
        loss = contrastive_loss(logits, classes)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))
        yield Step(step + 1, loss.item(), (logits.argmax(dim=1) == classes).float().mean().item())


def pretrain(
    name: str,
    recipe: Recipe,
    seed: int,
    on_step: Callable[[Step], None] = lambda _: None,
) -> tuple[open_clip.CLIP, CaptionBank]:
    """Pretrain the model ``name`` from nothing.

    Args:
        name: a key of `RECIPES`.
        recipe: the settings.
        seed: of the initial weights and of everything drawn. On one thread the same seed gives the same weights.
        on_step: called after each contrastive step.

    Returns:
        The model, in evaluation mode, for the vocabulary of its captions; and the captions.

    Raises:
        KdplError: matplotlib is not installed.
    """
    glyphs = render_bank()
    captions = caption_bank()
    generator = Generator().manual_seed(seed)
    model = build_model(name, len(captions.token_ids), seed)
    learn_agreement(model, captions, recipe.agreement_steps, generator)
    for step in train_contrastively(model, captions, glyphs, recipe, generator):
        on_step(step)
    return model.eval(), captions


def _text_parameters(model: open_clip.CLIP) -> list[nn.Parameter]:
    return [
        parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("visual.") and name != "logit_scale"
    ]


def _contrastive_optimizer(model: open_clip.CLIP, recipe: Recipe) -> AdamW:
    matrices = [parameter for parameter in model.visual.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.visual.parameters() if parameter.ndim < 2]
    image, text = recipe.learning_rate, recipe.text_learning_rate
    return AdamW(
        [
            {"params": matrices, "lr": image, "weight_decay": recipe.weight_decay},
            {"params": [*vectors, model.logit_scale], "lr": image, "weight_decay": 0.0},
            {"params": _text_parameters(model), "lr": text, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )


def _set_learning_rate(optimizer: Optimizer, share: float) -> None:
    """Put every group at ``share`` of its peak learning rate."""
    for group in optimizer.param_groups:
        group.setdefault("peak_lr", group["lr"])
        group["lr"] = share * group["peak_lr"]


def main(arguments: list[str] | None = None) -> int:
    """Pretrain one model and write its weights; returns the exit code."""
    parser = argparse.ArgumentParser("python -m kdpl.tiny.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("role", choices=["teacher", "student", "resnet"], help="which of the miniature CLIPs")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="contrastive steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of weights and data (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="weights file to write (default: the one in the package)")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps is {options.steps}, expected at least 1")
    name = f"tiny-{options.role}"
    out = options.out or weights_path(name)
    # Sums split over threads round differently: one thread, so that a seed means the same on every number of cores.
    torch.set_num_threads(1)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns) as progress:
            task = progress.add_task(name, total=options.steps)

            def show(step: Step) -> None:
                progress.advance(task)
                if step.number % 250 == 0:
                    progress.console.print(f"step {step.number}: loss {step.loss:.3f}, accuracy {step.accuracy:.0%}")

            recipe = replace(RECIPES[name], steps=options.steps)
            model, captions = pretrain(name, recipe, options.seed, show)
        save_compact(out, model.state_dict(), captions.token_ids, name=name, steps=options.steps, seed=options.seed)
    except KdplError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {out} ({out.stat().st_size / 1e6:.2f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
