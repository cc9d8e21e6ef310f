"""``python -m benchmarks.doubt``: rejection, sets, and scores of being none of the classes, on digits and letters.

Finished runs of a world's three seeds are read, each a folder with ``teacher`` and ``student``;
nothing is trained. For rejection and sets, validation and test images together are divided at
random into a half that is held out and a half that is classified. For none of the classes, test
images are compared with images of other things.
"""

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import betabinom
from sklearn.datasets import load_sample_image
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.messy_pool import open_any
from benchmarks.worlds import WORLDS
from kdpl import Classifier
from kdpl.class_vectors import NameEncoder
from kdpl.confidence import decision_rule
from kdpl.confidence.held_out import HeldOutScores
from kdpl.confidence.unknown import Unknown
from kdpl.confidence.words import everyday_words, farthest
from kdpl.data.splits import Record, Splits
from kdpl.errors import ConfigError
from kdpl.tasks import DecisionRule

ERRORS, COVERAGES = (0.01, 0.02, 0.05, 0.1, 0.2), (0.9, 0.95)
SPLITS, OTHERS = 20, 400
RULES = {
    f"error {error:.0%}, unknown {share:.0%}": {
        name: value for name, value in (("max_error", error), ("reject_unknown", share)) if value
    }
    for error in (0, 0.02, 0.05)
    for share in (0, 0.02, 0.05, 0.1)
    if error or share
}


def images_of(splits: Splits, records: Sequence[Record]) -> list[Image.Image]:
    """Open the images of records."""
    return [splits.open_image(record.source) for record in records]


def others_than(world: str) -> Iterator[tuple[str, list[Image.Image]]]:
    """Images of other things, by kind."""
    other = next(name for name in WORLDS if name != world)
    splits = WORLDS[other].read()
    yield other, images_of(splits, splits.test[:: len(splits.test) // OTHERS][:OTHERS])
    if world == "digits":
        yield "printed letters", [open_any(f"letters/{i}") for i in range(OTHERS)]
    draw = np.random.RandomState(0)
    yield (
        "noise",
        [
            Image.fromarray(draw.randint(0, 256, (32, 32, 3)).astype(np.uint8))
            for _ in range(OTHERS)
        ],
    )
    yield "photographs", list(_photographs(draw))
    yield "textures", [open_any(f"textures/{i}") for i in range(OTHERS)]


def _photographs(draw: np.random.RandomState) -> Iterator[Image.Image]:
    """Pieces of scikit-learn's two photographs."""
    pictures = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    for i in range(OTHERS):
        picture, edge = pictures[i % 2], draw.randint(48, 200)
        x, y = draw.randint(picture.width - edge), draw.randint(picture.height - edge)
        yield picture.crop((x, y, x + edge, y + edge))


def _halves(
    classifiers: Sequence[Classifier], splits: Splits
) -> Iterator[tuple[HeldOutScores, Tensor, Tensor]]:
    """Scores of one half, and logits [N, C] and labels [N] of the other, of each split for each classifier."""
    records = [*splits.val, *splits.test]
    labels = torch.tensor([record.label for record in records])
    for classifier in classifiers:
        with torch.no_grad():
            images = torch.stack(
                [classifier.prepare(image) for image in images_of(splits, records)]
            )
            logits, draw = classifier(images), torch.Generator().manual_seed(0)
        for _ in range(SPLITS):
            held, new = torch.randperm(len(records), generator=draw).tensor_split(2)
            yield HeldOutScores.of(logits[held], labels[held]), logits[new], labels[new]


def rejection(classifiers: Sequence[Classifier], splits: Splits) -> Iterator[str]:
    """Rows on wanted errors and coverages, over all splits for all classifiers."""
    halves = [
        (held, new.softmax(dim=1), labels) for held, new, labels in _halves(classifiers, splits)
    ]
    accuracy = statistics.mean(
        float((new.argmax(dim=1) == labels).float().mean()) for _, new, labels in halves
    )
    yield f"{len(halves)} splits into halves of {len(halves[0][0])}, accuracy {accuracy:.1%}"
    for wanted in ERRORS:
        found = []
        for held, new, labels in halves:
            try:
                accepted = new.amax(dim=1) >= held.threshold(wanted)
            except ConfigError:
                continue
            wrong = new.argmax(dim=1)[accepted] != labels[accepted]
            found.append((float(accepted.float().mean()), float(wrong.float().mean())))
        row = f"  error {wanted:.0%}: refused {len(halves) - len(found)}"
        if found:
            accepts, errors = (statistics.mean(column) for column in zip(*found, strict=True))
            kept = sum(error <= wanted for _, error in found)
            row += f", kept {kept} of {len(found)}, accepts {accepts:.1%}, wrong {errors:.2%}"
        yield row
    for coverage in COVERAGES:
        shares, sizes, below = [], [], 0
        for held, new, labels in halves:
            inside = new >= held.set_threshold(coverage)
            inside[torch.arange(len(new)), new.argmax(dim=1)] = True
            covered = int(inside[torch.arange(len(new)), labels].sum())
            # by which the number varies from split to split (Vovk, arXiv 1209.2673, section 4)
            rank = math.ceil((len(held) + 1) * coverage - 1e-9)
            below += covered < betabinom.ppf(0.025, len(new), rank, len(held) + 1 - rank)
            shares.append(covered / len(new))
            sizes.append(float(inside.sum(dim=1).float().mean()))
        held_by, size = statistics.mean(shares), statistics.mean(sizes)
        yield f"  sets {coverage:.0%}: hold {held_by:.1%}, mean size {size:.2f}, too few in {below} splits"


def unknown_of(run: Path, classifier: Classifier, splits: Splits) -> Unknown:
    """What a student's fit leaves, made again for a run without it."""
    encoder, words = NameEncoder.load(run / "teacher"), everyday_words()
    vectors, classes = encoder.encode(words).vectors, classifier.vectors.vectors
    far = farthest(vectors, classes)
    usual, known = (
        classifier.embed(images_of(splits, records)) for records in (splits.train, splits.val)
    )
    scale = classifier.logit_scale
    unknown = Unknown.fit(usual, classes, scale, vectors[far], [words[i] for i in far])
    return unknown.calibrated(known, classes, scale, torch.empty(0))


def scores_of(
    classifier: Classifier, unknown: Unknown, images: Sequence[Image.Image]
) -> dict[str, Tensor]:
    """Scores of images by name, high for none of the classes, [N] each."""
    features, classes, scale = (
        classifier.embed(images),
        classifier.vectors.vectors,
        classifier.logit_scale,
    )
    logits = scale * features @ classes.T
    distance, share = unknown.parts(features, classes, scale)
    scores = {"probability": -logits.softmax(dim=1).amax(dim=1), "cosine": -logits.amax(dim=1)}
    # not by the sigmoid, of which very unusual images would all have 1
    unusual = unknown.unusualness(features, classes, scale)
    return {
        **scores,
        "words": -share,
        "distance": distance,
        "score": unusual,
    }


def none_of_these(
    runs: Sequence[Path], classifiers: Sequence[Classifier], world: str
) -> Iterator[str]:
    """Rows of AUROC, mean over the runs, and the least by which the score is above the probability."""
    splits, found = WORLDS[world].read(), {}
    others = dict(others_than(world))
    for run, classifier in zip(runs, classifiers, strict=True):
        unknown = unknown_of(run, classifier, splits)
        known = scores_of(classifier, unknown, images_of(splits, splits.test))
        above = float((known["score"] > unknown.cutoff).float().mean())
        for kind, images in others.items():
            other = scores_of(classifier, unknown, images)
            target = [0] * len(known["score"]) + [1] * len(images)
            areas = {
                name: roc_auc_score(target, torch.cat([known[name], other[name]])) for name in known
            }
            beyond = float((other["score"] > unknown.cutoff).float().mean())
            found.setdefault(kind, []).append((areas, above, beyond))
    for kind, of_runs in found.items():
        means = {
            name: statistics.mean(areas[name] for areas, _, _ in of_runs) for name in of_runs[0][0]
        }
        least = min(areas["score"] - areas["probability"] for areas, _, _ in of_runs)
        above, beyond = (statistics.mean(each[i] for each in of_runs) for i in (1, 2))
        cells = [f"{name} {area:.3f}" for name, area in means.items()]
        cells += [
            f"score over probability {least:+.3f} or more",
            f"above 0.5 {beyond:.0%}, {world} {above:.1%}",
        ]
        yield f"  {kind}: {', '.join(cells)}"


def both_rules(classifiers: Sequence[Classifier], world: str) -> Iterator[str]:
    """Rows on what wanted errors, rejection as unknown, and both accept, over all splits for all classifiers."""
    splits = WORLDS[world].read()
    records = [*splits.val, *splits.test]
    labels = torch.tensor([record.label for record in records])
    others, found = dict(others_than(world)), {name: [] for name in RULES}
    for classifier in classifiers:
        images = images_of(splits, records)
        features, draw = classifier.embed(images), torch.Generator().manual_seed(0)
        kinds = [classifier.embed(images) for images in others.values()]
        vectors, unknown = classifier.head.class_vectors, classifier.companions["unknown"]
        for _ in range(SPLITS):
            held, new = torch.randperm(len(records), generator=draw).tensor_split(2)
            logits = classifier.logits(features)
            classifier.companions["held_out"] = HeldOutScores.of(logits[held], labels[held])
            unknown.calibrated(features[held], vectors, classifier.logit_scale, labels[held])
            for name, wanted in RULES.items():
                try:
                    rule = decision_rule(classifier, **wanted)
                except ConfigError:
                    continue
                accepted = accepts(classifier, rule, features[new])
                wrong = logits[new].argmax(dim=1)[accepted] != labels[new][accepted]
                shares = [accepts(classifier, rule, rows).float().mean() for rows in kinds]
                found[name].append([accepted.float().mean(), wrong.float().mean(), *shares])
    for name, rows in found.items():
        if rows:
            kept = sum(float(row[1]) <= RULES[name].get("max_error", 1.0) for row in rows)
            means = (f"{float(mean):.1%}" for mean in torch.tensor(rows).mean(dim=0))
            columns = zip(("accepted", "wrong", *others), means, strict=True)
            cells = ", ".join(f"{column} {mean}" for column, mean in columns)
            yield f"  {name}: {cells}; error kept in {kept} of {len(rows)}"


def accepts(classifier: Classifier, rule: DecisionRule, features: Tensor) -> Tensor:
    """Which images a rule accepts, by their features, bool [N]."""
    accepted = classifier.logits(features).softmax(dim=1).amax(dim=1) >= (rule.threshold or 0)
    for name, limit in rule.limits.items():
        accepted &= classifier.scores(features)[name] <= limit
    return accepted


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the runs of each world that is given, and print the rows; returns 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.doubt", description="Rejection, sets, none of the classes."
    )
    for world in WORLDS:
        parser.add_argument(
            f"--{world}",
            type=Path,
            nargs="*",
            default=[],
            metavar="RUN",
            help="runs, one for a seed",
        )
    options = vars(parser.parse_args(argv))
    for world, runs in options.items():
        if runs:
            classifiers = [Classifier.load(run / "student" / "classifier") for run in runs]
            print(
                f"{world}:",
                *rejection(classifiers, WORLDS[world].read()),
                *none_of_these(runs, classifiers, world),
                *both_rules(classifiers, world),
                sep="\n",
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
