"""Runs side by side: test accuracies, and differences to the first run over the same images."""

import os
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdpl.errors import ArtifactError, ConfigError
from kdpl.metrics import ACCURACY_COLUMNS
from kdpl.report.intervals import Scores, accuracy_of, paired_difference, scores_of
from kdpl.report.run_folder import Run


class ComparisonRow(NamedTuple):
    """A line of the table: its S seeds, and the scores of each as arrays [S, N].

    A line of something without seeds has none.
    """

    name: str
    seeds: Sequence[int]
    scores: Scores

    @classmethod
    def of(cls, name: str, seeds: Sequence[int], scored: Sequence[Scores]) -> "ComparisonRow":
        """Stack the scores of seeds, as far as all of them have an accuracy."""
        keys = [key for key in scored[0] if all(key in scores for scores in scored)]
        return cls(name, seeds, {key: np.stack([scores[key] for scores in scored]) for key in keys})


def find_groups(arguments: Sequence[str], trusted: bool = False) -> dict[str, list[Run]]:
    """Find the runs of each row of a comparison, in the order of their seeds.

    Args:
        arguments: Folders of ``run`` or of a stage, named by the folder, or ``NAME=RUN,RUN,…``,
            which may be patterns.
        trusted: Whether configs may name classes other than kdpl's.

    Raises:
        ConfigError: A run does not exist, or two rows have one name, or two runs of a row one seed.
        ArtifactError: A run was not tested, or not on the images and classes of the first one.
    """
    groups: dict[str, list[Run]] = {}
    for argument in arguments:
        name, paths = Path(argument).resolve().name, [argument]
        if "=" in argument and not Path(argument).is_dir():
            name, _, listed = argument.partition("=")
            paths = [path for part in listed.split(",") for path in sorted(glob(part)) or [part]]  # noqa: PTH207
        if name in groups:
            raise ConfigError(
                f"two of the runs are called {name}: name them, as in first=RUN second=RUN"
            )
        groups[name] = sorted(
            (Run.find(Path(path), trusted) for path in paths), key=lambda run: run.seed
        )
        if len({run.seed for run in groups[name]}) < len(paths):
            raise ConfigError(
                f"two runs of {name} have the same seed: give runs that differ in the seed"
            )
    first, *others = (run for runs in groups.values() for run in runs)
    for run in others:
        names = first.vectors.class_names, run.vectors.class_names
        images = _test_images(first), _test_images(run)
        for what, (one, two) in {"classes": names, "test images": images}.items():
            if one != two:
                raise ArtifactError(
                    f"{run.folder} was tested on other {what} than {first.folder} ({len(two)} and "
                    f"{len(one)}): compare them with runs of their own"
                )
    return groups


def _test_images(run: Run) -> list[tuple[str, int]]:
    """Path without links, and label, of each test image."""
    return [(os.path.realpath(source), label) for source, label in run.tested]


def run_row(name: str, runs: Sequence[Run]) -> ComparisonRow:
    """Score the students of runs, or their teachers without students."""
    return ComparisonRow.of(
        name, [run.seed for run in runs], [scores_of(run, run.main) for run in runs]
    )


def compared(rows: Sequence[ComparisonRow]) -> list[dict[str, Any]]:
    """Compare rows with the first one, by accuracy; returns flat records with figures in %.

    ``verdict`` says whether the difference's interval excludes 0, in words.
    """
    return [
        _record(key, row, rows[0]) for key in ACCURACY_COLUMNS for row in rows if key in row.scores
    ]


def _record(key: str, row: ComparisonRow, reference: ComparisonRow) -> dict[str, Any]:
    scores, difference, verdict = row.scores[key], None, ""
    accuracy = accuracy_of(key, scores)
    if row is not reference and key in reference.scores:
        difference = paired_difference(reference.scores[key], scores, row.seeds == reference.seeds)
        low, high = difference.interval
        verdict = "higher" if low > 0 else "lower" if high < 0 else "not clear"
    record: dict[str, Any] = {
        "row": row.name,
        "seeds": len(row.seeds),
        "classes": ACCURACY_COLUMNS[key],
    }
    for name, each in (("accuracy", accuracy), ("difference", difference)):
        figures = (
            (None,) * 3
            if each is None
            else [round(100 * n, 4) for n in (each.value, *each.interval)]
        )
        record |= zip((name, f"{name}_low", f"{name}_high"), figures, strict=True)
    return {**record, "verdict": verdict}
