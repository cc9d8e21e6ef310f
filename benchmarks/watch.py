"""``python -m benchmarks.watch CLASSIFIER``: how often ``watch`` says that new images differ, and rightly.

The classifier is one of the digits or of the letters. Batches of its unseen images, as they are,
changed, or with others among them, are compared with its pool, and, for the rate of false alarms
alone, with other unseen images. Beside it the energy distance, a usual two-sample test, of the same
features.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from benchmarks.worlds import letters
from kdpl.classifier import Classifier, PredictOptions
from kdpl.confidence.drift import two_samples
from kdpl.confidence.drift.batches import compare_samples
from kdpl.confidence.drift.image_sample import MAX_IMAGES, ImageSample
from kdpl.data.readers import digits

RATE = 0.01
SIZES = (50, 200, 1000)
SHARES = (0.05, 0.1, 0.25, 0.5)
CLASS = 3  # that is missing, or comes twice as often
_OTHERS = 1300

Pair = tuple[ImageSample, ImageSample]
Draw = Callable[[int, np.random.Generator], ImageSample]
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def noisy(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Add Gaussian noise with a deviation of 64 of 255."""
    pixels = np.asarray(image) + draw.normal(0, 64, (image.height, image.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


CHANGES: dict[str, Change] = {
    "noise": noisy,
    "blurred": lambda image, _: image.filter(ImageFilter.GaussianBlur(2)),
    "inverted": lambda image, _: ImageOps.invert(image),
}


class World(NamedTuple):
    """What a classifier finds in its pool, in unseen images with labels, in these changed, and in another domain's."""

    classifier: Classifier
    pool: ImageSample
    unseen: ImageSample
    labels: np.ndarray
    changed: dict[str, ImageSample]
    others: ImageSample


def world_of(classifier: Classifier) -> World:
    """Classify all images."""
    sources = {
        "digits": (digits.read_digits(), digits.open_digit),
        "letters": (letters.read_letters(), letters.open_letter),
    }
    name = "digits" if classifier.class_names == digits.CLASS_NAMES else "letters"
    (splits, opened), (further, open_other) = sources.pop(name), *sources.values()
    records, noise = [*splits.val, *splits.test], np.random.default_rng(0)

    def sample(images: Sequence[Image.Image]) -> ImageSample:
        found = classifier.predictions(images, lambda image: image, PredictOptions(workers=1))
        return ImageSample.of([each for _, each in found], classifier.class_names)

    unseen = [opened(record.source) for record in records]
    return World(
        classifier,
        sample([opened(record.source) for record in splits.train]).draw(MAX_IMAGES),
        sample(unseen),
        np.array([record.label for record in records]),
        {
            name: sample([change(image, noise) for image in unseen])
            for name, change in CHANGES.items()
        },
        sample([open_other(record.source) for record in further.test[:_OTHERS]]),
    )


def taken(sample: ImageSample, indices: np.ndarray) -> ImageSample:
    """Some of the images."""
    return ImageSample(*(each[torch.from_numpy(indices)] for each in vars(sample).values()))


def any_of(sample: ImageSample) -> Draw:
    """Draw images without replacement, all where there are fewer."""
    return lambda size, draw: taken(sample, draw.permutation(len(sample))[:size])


def with_class(world: World, weight: int) -> Draw:
    """Draw unseen images of which a class comes this many times as often, all where there are fewer."""

    def batch(size: int, draw: np.random.Generator) -> ImageSample:
        order = draw.permutation(len(world.labels))
        is_class = world.labels[order] == CLASS
        others = order[~is_class]
        kept = np.concatenate(
            [order[is_class][: weight * len(order)], others[: len(others) // max(weight, 1)]]
        )
        return any_of(taken(world.unseen, kept))(size, draw)

    return batch


def mixed(sample: ImageSample, others: ImageSample, share: float) -> Draw:
    """Draw images of which a share are others."""

    def batch(size: int, draw: np.random.Generator) -> ImageSample:
        few = round(share * size)
        parts = [any_of(each)(count, draw) for each, count in ((sample, size - few), (others, few))]
        return ImageSample(
            *(
                torch.cat(columns)
                for columns in zip(*(vars(p).values() for p in parts), strict=True)
            )
        )

    return batch


def energy(pool: ImageSample, new: ImageSample) -> float:
    """P-value, by permutations, of the energy distance of features (Székely and Rizzo, InterStat 2004)."""
    features = torch.cat([pool.features, new.features]).float()
    distances, draw = torch.cdist(features, features), np.random.default_rng(0)
    given = np.arange(len(features)) >= len(pool)
    rows = [given, *(draw.permutation(given) for _ in range(two_samples.PERMUTATIONS))]
    is_new = torch.from_numpy(np.stack(rows)).float()
    n, m = len(new), len(pool)
    # 2 E|X - Y| - E|X - X'| - E|Y - Y'|, from sums over pairs
    within, total = ((is_new @ distances) * is_new).sum(dim=1), distances.sum()
    across = is_new @ distances.sum(dim=1) - within
    found = 2 * across / (n * m) - within / n**2 - (total - within - 2 * across) / m**2
    return float((found >= found[0] - 1e-6).double().mean())


def cases(world: World) -> dict[str, Draw]:
    """Kinds of batches by name; the first ones are like the pool as far as the domain's unseen images are."""
    return {
        "unseen images": any_of(world.unseen),
        **{name: any_of(sample) for name, sample in world.changed.items()},
        **{f"{share:.0%} others": mixed(world.unseen, world.others, share) for share in SHARES},
        "a class missing": with_class(world, 0),
        "a class doubled": with_class(world, 2),
    }


def alarms(
    world: World, pairs: Callable[[np.random.Generator], Pair], batches: int
) -> tuple[float, float, float]:
    """Share of pairs of samples that differ at ``RATE``; by the none-of-these score; and by the energy distance."""
    found = []
    for seed in range(batches):
        pool, new = pairs(np.random.default_rng(seed))
        of_training = pool is world.pool
        comparison, _, _ = compare_samples(world.classifier, pool, new, None, of_training)
        questions = comparison.questions
        p_values = min(questions.values()), questions.get("unknown", 1.0), energy(pool, new)
        found.append([p_value <= RATE for p_value in p_values])
    return tuple(np.mean(found, axis=0).tolist())


def apart(sample: ImageSample, size: int, draw: np.random.Generator) -> Pair:
    """Two samples without a common image: the second of this size, the first of all others, at most 1,000."""
    order = draw.permutation(len(sample))
    return taken(sample, order[size:][:MAX_IMAGES]), taken(sample, order[:size])


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row for each kind of batches, as soon as it is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "classifier", type=Path, help="folder of a classifier of the digits or the letters"
    )
    parser.add_argument(
        "--batches", type=int, default=50, help="number of batches of each kind and size"
    )
    parser.add_argument(
        "--false", type=int, default=200, help="number of batches of images that are as before"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=SIZES, help="numbers of images in a batch"
    )
    parser.add_argument("--permutations", type=int, default=two_samples.PERMUTATIONS)
    options = parser.parse_args(argv)
    two_samples.PERMUTATIONS = options.permutations
    world = world_of(Classifier.load(options.classifier))
    print(f"{options.classifier}: {len(world.pool)} images of the pool, {len(world.unseen)} unseen")
    title = " batches that differ, %; in brackets: by the none-of-these score, and energy distance "
    print("|".join(["", title, *map(str, options.sizes), ""]))
    print("|".join(["", "---", *["--:"] * len(options.sizes), ""]))

    def row(name: str, batches: int, pairs: Callable[[int, np.random.Generator], Pair]) -> None:
        cells = []
        for size in options.sizes:
            found = alarms(world, lambda draw, size=size: pairs(size, draw), batches)
            ours, unknown, usual = (f"{100 * share:.3g}" for share in found)
            cells.append(f"{ours} ({unknown}; {usual})")
        print("|".join(["", name, *cells, ""]), flush=True)

    row(
        "unseen against unseen images",
        options.false,
        lambda size, draw: apart(world.unseen, size, draw),
    )
    for number, (name, draw_batch) in enumerate(cases(world).items()):
        batches = options.batches if number else options.false
        row(name, batches, lambda size, draw, of=draw_batch: (world.pool, of(size, draw)))


if __name__ == "__main__":
    main()
