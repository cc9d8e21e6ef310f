"""``python -m benchmarks.uneven_shots``: one label for half of the classes, and what ``balance_classes`` makes of it.

The quickstart's teacher, tuned on 1 image of each of five digits, which the seed chooses, and 16 of
each other digit. Interrupted, the same command resumes.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kdpl.__main__ import main as kdpl
from kdpl.data.readers.digits import read_digits
from kdpl.data.sampling import few_shot
from kdpl.data.splits import Reader, Splits
from kdpl.runtime.predictions import read_predictions

SEEDS = (1, 2, 3)
SETTINGS = {"without": [], "balance_classes: true": ["--data.init_args.balance_classes=true"]}
COLUMNS = {"all classes": (0, 10), "with 1 label": (0, 5), "with 16 labels": (5, 10)}


def classes(seed: int) -> list[int]:
    """The digits in a random order, of which the first five have one label."""
    return np.random.default_rng(seed).permutation(10).tolist()


@dataclass
class UnevenDigits(Reader):
    """The digits, with one labelled image of five of them, chosen by ``seed``; all training images stay unlabelled."""

    seed: int
    from_user = False

    def read(self) -> Splits:
        """Read the digits, and leave out labels."""
        digits, rare = read_digits(), classes(self.seed)[:5]
        one, _ = few_shot(digits.train, (), 1, None, self.seed)
        train = tuple(
            record for record in digits.train if record.label not in rare or record in one
        )
        return replace(
            digits, train=train, unlabeled=tuple(record.source for record in digits.train)
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Tune and test the teachers, and print the table; returns 0."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.uneven_shots", description="Classes of uneven labels."
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder of the runs"
    )
    options = parser.parse_args(argv)
    # as the quickstart runs, whatever the number of cores
    torch.set_num_threads(1)
    print(f"| mean accuracy of a class, % | {' | '.join(COLUMNS)} |\n|---{'|--:' * len(COLUMNS)}|")
    for name, settings in SETTINGS.items():
        found = [
            _accuracies(options.out / f"{name.partition(':')[0]}_{seed}", seed, settings)
            for seed in SEEDS
        ]
        parts = [
            [100 * statistics.mean(each[first:last]) for each in found]
            for first, last in COLUMNS.values()
        ]
        cells = [f"{statistics.mean(part):.1f} ± {statistics.stdev(part):.1f}" for part in parts]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


def _accuracies(folder: Path, seed: int, settings: Sequence[str]) -> list[float]:
    """Accuracy of a seed's teacher on the test images of each class, in the order of ``classes``."""
    reader = {"class_path": "benchmarks.uneven_shots.UnevenDigits", "init_args": {"seed": seed}}
    names = ("data/digits", "trainer/cpu", "teacher/quickstart")
    own = [
        f"--data.init_args.dataset={json.dumps(reader)}",
        "--data.init_args.allow_fewer_shots=true",
        *settings,
    ]
    if not (folder / "test.json").is_file():
        fit = [
            *(f"--config=configs/{name}.yaml" for name in names),
            *own,
            f"--seed_everything={seed}",
        ]
        for command in (
            ["fit", *fit, f"--out={folder}"],
            ["test", f"--config={folder}/config.yaml"],
        ):
            if kdpl(command):
                raise SystemExit(1)
    tested = read_predictions(folder)
    return [
        statistics.mean(p.correct for p in tested if p.label_number == label)
        for label in classes(seed)
    ]


if __name__ == "__main__":
    raise SystemExit(main())
