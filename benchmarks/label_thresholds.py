"""``python -m benchmarks.label_thresholds STUDENT``: how often thresholds of a wanted precision keep it.

A student of ``benchmarks.several_labels`` classifies pages of test digits that are drawn for this,
which are divided at random into held-out pages, by which thresholds are chosen as
``python -m kdpl thresholds --precision`` does, and others. As many are also drawn with replacement,
for thresholds that are judged by all pages, as if there were no others.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from benchmarks.worlds.pages import draw_page
from kdpl import Classifier
from kdpl.data.readers.digits import CLASS_NAMES, read_digits
from kdpl.multilabel.task import MultiLabel
from kdpl.multilabel.thresholds import choose

PAGES, SPLITS, SEED = 4000, 20, 100
WANTED, HELD_OUT = (0.8, 0.9), (600, 2000)


def classified_pages(student: Path) -> tuple[Tensor, Tensor]:
    """Draw the pages: the logits of a student's classifier and the labels, [N, C] both."""
    classifier = Classifier.load(student / "classifier")
    numbers = [classifier.class_names.index(name) for name in CLASS_NAMES]
    digits, rng = read_digits().test, np.random.default_rng(SEED)
    images, labels = [], torch.zeros(PAGES, len(numbers), dtype=torch.bool)
    for row in range(PAGES):
        page, shown = draw_page(digits, rng)
        images.append(classifier.prepare(page))
        labels[row, [numbers[digit] for digit in shown]] = True
    with torch.no_grad():
        logits = torch.cat([classifier(batch) for batch in torch.stack(images).split(256)])
    return logits, labels


def precisions(
    logits: Tensor, labels: Tensor, held_out: Tensor, others: Tensor, wanted: float
) -> Iterator[tuple[int, int, int]]:
    """Yield what is named, right and to be found among the others, of each class with a threshold.

    Classes of which the held-out pages, given by their indices, do not show the precision are left out.
    """
    found = choose(logits[held_out], labels[held_out], wanted)
    task = MultiLabel([each.value for each in found])
    named, own = task.labels(logits[others]), labels[others]
    right = named & own
    for label, threshold in enumerate(found):
        if threshold.problem is None:
            yield int(named[:, label].sum()), int(right[:, label].sum()), int(own[:, label].sum())


def row(logits: Tensor, labels: Tensor, wanted: float, count: int) -> str:
    """Measure one wanted precision and number of held-out pages: a row of a Markdown table."""
    draw, everything = torch.Generator().manual_seed(0), torch.arange(len(labels))
    apart, together = [], []
    for _ in range(SPLITS):
        held_out, others = torch.randperm(len(labels), generator=draw).tensor_split([count])
        apart += precisions(logits, labels, held_out, others, wanted)
        held_out = torch.randint(len(labels), (count,), generator=draw)
        together += precisions(logits, labels, held_out, everything, wanted)
    kept = sum(right >= wanted * named for named, right, _ in apart)
    # a smaller one would be seen in less than 5 % of all draws if the precision were as wanted
    chance = sum(bool(binom.cdf(right, named, wanted) > 0.05) for named, right, _ in apart)
    of_all = sum(right >= wanted * named for named, right, _ in together)
    found = statistics.mean(right / own for _, right, own in apart) if apart else 0.0
    cells = [f"{wanted:.0%}", f"{count:,}", f"{len(apart)} of {SPLITS * labels.shape[1]}"]
    cells += [f"{kept} of {len(apart)}", f"{chance} of {len(apart)}"]
    cells += [f"{of_all} of {len(together)}", f"{100 * found:.0f}"]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a student and print the table; returns 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.label_thresholds", description="Thresholds of a wanted precision."
    )
    parser.add_argument("student", type=Path, help="folder of a student's run on the pages")
    logits, labels = classified_pages(parser.parse_args(argv).student)
    print("| precision | held out | shown | kept | kept up to chance | kept of all | recall, % |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for wanted, count in itertools.product(WANTED, HELD_OUT):
        print(row(logits, labels, wanted, count), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
