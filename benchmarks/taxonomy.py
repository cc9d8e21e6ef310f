"""``python -m benchmarks.taxonomy``: answers at the levels of a tree of classes, beside rejection at the same error.

Finished runs of a world's three seeds are read, each a folder with ``student``; nothing is trained.
Validation and test images together are divided at random into images that are held out, as many as
the world's validation images or half of all, and images that are classified. As many are also
drawn with replacement, for thresholds that are judged by all images, as if there were no others.
"""

import argparse
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.worlds import WORLDS
from benchmarks.worlds.characters import Characters
from kdpl import Classifier
from kdpl.confidence.held_out import HeldOutScores
from kdpl.confidence.taxonomy.scores import LevelScores, levels_answered
from kdpl.confidence.taxonomy.tree import Taxonomy
from kdpl.data.splits import Splits
from kdpl.errors import ConfigError

TREES = {
    "characters.csv": Characters(),
    "characters_deep.csv": Characters(),
    "digits.csv": WORLDS["digits"],
}
"""Tables of trees in the folder of the worlds, and what they are of."""

ERRORS, SPLITS, DRAWS = (0.02, 0.05), 20, 100


class Split(NamedTuple):
    """Of one split and wanted error: share answered by level, errors there, and rejection's share."""

    answered: list[float]
    errors: list[float]
    rejection: dict[str, float]


def logits_of(run: Path, splits: Splits) -> tuple[Tensor, Tensor]:
    """Classify validation and test images: logits [N, C] and labels [N]."""
    classifier, records = (
        Classifier.load(run / "student" / "classifier"),
        [*splits.val, *splits.test],
    )
    images = [classifier.prepare(splits.open_image(record.source)) for record in records]
    with torch.no_grad():
        logits = torch.cat([classifier(batch) for batch in torch.stack(images).split(256)])
    return logits, torch.tensor([record.label for record in records])


def answers(
    taxonomy: Taxonomy, logits: Tensor, labels: Tensor, wanted: float, count: int
) -> Iterator[Split]:
    """Split the images at random, and answer the others by thresholds from ``count`` of them."""
    known, flat = LevelScores.of(taxonomy, logits, labels), HeldOutScores.of(logits, labels)
    draw = torch.Generator().manual_seed(0)
    for _ in range(SPLITS):
        held, new = torch.randperm(len(labels), generator=draw).tensor_split([count])
        try:
            thresholds = LevelScores(taxonomy, known.scores[held], known.correct[held]).thresholds(
                wanted
            )
        except ConfigError:
            thresholds = [math.inf] * len(taxonomy.nodes)
        answered = levels_answered(known.scores[new], thresholds)
        shares, errors = [], []
        for level in range(1, len(taxonomy.nodes) + 1):
            right = known.correct[new][answered == level, level - 1]
            shares.append(len(right) / len(new))
            errors.append(float((~right).float().mean()) if len(right) else 0.0)
        rejection = {}
        for name, strictest in {"--max-error": 0.5, "the same start": 0.25}.items():
            own = HeldOutScores(1.0, flat.scores[held], flat.scores[held], flat.correct[held])
            try:
                least = own.threshold(wanted, strictest=strictest)
                rejection[name] = float((flat.scores[new] >= least).float().mean())
            except ConfigError:
                rejection[name] = 0.0
        yield Split(shares, errors, rejection)


def kept_by_draws(
    taxonomy: Taxonomy, logits: Tensor, labels: Tensor, wanted: float, count: int
) -> int:
    """Return in how many draws of ``count`` images no level has a larger error among all images."""
    known, kept = LevelScores.of(taxonomy, logits, labels), 0
    draw = torch.Generator().manual_seed(0)
    for _ in range(DRAWS):
        held = torch.randint(len(labels), (count,), generator=draw)
        try:
            own = LevelScores(taxonomy, known.scores[held], known.correct[held])
            answered = levels_answered(known.scores, own.thresholds(wanted))
        except ConfigError:
            answered = torch.zeros(len(labels), dtype=torch.long)
        right = [known.correct[answered == i, i - 1] for i in answered.unique().tolist() if i]
        kept += all(float((~each).float().mean()) <= wanted for each in right)
    return kept


def rows(table: str, runs: Sequence[Path]) -> Iterator[str]:
    """Rows of a Markdown table, one for each wanted error, over all splits of all runs."""
    splits = TREES[table].read()
    taxonomy = Taxonomy.read(Path(__file__).parent / "worlds" / table, splits.class_names)
    outputs = [logits_of(run, splits) for run in runs]
    total = len(splits.val) + len(splits.test)
    for wanted, count in itertools.product(ERRORS, (len(splits.val), total // 2)):
        found = [each for out in outputs for each in answers(taxonomy, *out, wanted, count)]
        kept = sum(max(each.errors) <= wanted for each in found)
        levels = zip(*(each.answered for each in found), strict=True)
        shares = [f"{100 * statistics.mean(level):.1f}" for level in levels]
        in_all = 100 * statistics.mean(sum(each.answered) for each in found)
        drawn = sum(kept_by_draws(taxonomy, *out, wanted, count) for out in outputs)
        cells = [table, f"{wanted:.0%}", f"{count:,}", f"{kept} of {len(found)}"]
        cells.append(f"{drawn} of {DRAWS * len(outputs)}")
        cells += [" / ".join(shares), f"{in_all:.1f}"]
        means = (statistics.mean(s.rejection[name] for s in found) for name in found[0].rejection)
        cells += [f"{100 * mean:.1f}" for mean in means]
        yield f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the runs of each world that is given, and print the rows; returns 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.taxonomy", description="Answers at the levels of a tree of classes."
    )
    for world in ("characters", "digits"):
        parser.add_argument(f"--{world}", type=Path, nargs="*", default=[], metavar="RUN")
    options = vars(parser.parse_args(argv))
    print(
        "| tree | error | held out | kept | of all | answered at level 1 / 2 / …, % | in all | --max-error | from the same start |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for table in TREES:
        runs = options[table.removesuffix(".csv").partition("_")[0]]
        if runs:
            print(*rows(table, runs), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
