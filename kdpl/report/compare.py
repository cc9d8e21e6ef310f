"""Runs side by side: test accuracies, and differences to the first run over the same images."""

import os
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from kdpl.errors import ArtifactError, ConfigError
from kdpl.metrics import ACCURACY_COLUMNS
from kdpl.report.accuracy import Accuracy, wilson
from kdpl.report.run_folder import Run, Stage
from kdpl.runtime.run_folder import CONFIG_FILE

Floats = npt.NDArray[np.float64]

Scores = dict[str, Floats]
"""By key of ``ACCURACY_COLUMNS``, what each of N images contributes to that accuracy, [N].

The accuracy is the mean.
"""


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


def scores_of(run: Run, stage: Stage) -> Scores:
    """Score the images of a run's test.

    Raises an ArtifactError if it is missing or lacks base and novel predictions.
    """
    predictions, num_base = stage.predictions, run.vectors.num_base
    scores = {"acc": np.array([p.correct for p in predictions], float)}
    if num_base is None:
        return scores
    if any(p.half_prediction_number is None for p in predictions):
        raise ArtifactError(
            f"{stage.folder} has no predictions among the base or the novel classes alone, test it "
            f"again: python -m kdpl test --config {stage.folder}/{CONFIG_FILE}"
        )
    correct = np.array([p.half_prediction_number == p.label_number for p in predictions], float)
    is_base = np.array([p.label_number < num_base for p in predictions])
    halves = {"base_acc": correct[is_base], "novel_acc": correct[~is_base]}
    if not all(half.size for half in halves.values()):
        return scores | {key: half for key, half in halves.items() if half.size}
    # linear in the images: h + dh/db (N / N_b) (x - b) for a base image, likewise for a novel one
    b, n = (half.mean() for half in halves.values())
    total = b + n or 1.0
    slopes = np.where(is_base, n**2 / is_base.mean(), b**2 / (~is_base).mean()) * 2 / total**2
    return (
        scores | halves | {"hm": 2 * b * n / total + slopes * (correct - np.where(is_base, b, n))}
    )


def paired_difference(first: Floats, second: Floats, same_seeds: bool = False) -> Accuracy:
    """Return the mean of second scores [S, N] minus that of first ones [R, N], with an interval.

    Both are of the same images; the interval is at 95 %.

    Images and seeds are two samples, whose squared standard errors add up: that of the images'
    differences, averaged over seeds, and that of the seeds' differences, averaged over images. The
    interval is Student's, with Welch's degrees of freedom (Biometrika 34, 1947). With one seed it
    is that of the images alone. ``same_seeds`` tells whether both are of the same seeds in the same
    order, which are then pairs as well.
    """
    by_image = second.mean(axis=0) - first.mean(axis=0)
    by_seed = (
        [(second - first).mean(axis=1)] if same_seeds else [first.mean(axis=1), second.mean(axis=1)]
    )
    samples = [sample for sample in (by_image, *by_seed) if len(sample) > 1]
    squares = np.array([sample.var(ddof=1) / len(sample) for sample in samples])
    mean, total = float(by_image.mean()), squares.sum()
    if not total:
        return Accuracy(mean, (mean, mean))
    freedom = total**2 / (squares**2 / [len(sample) - 1 for sample in samples]).sum()
    margin = float(student_t.ppf(0.975, freedom) * np.sqrt(total))
    return Accuracy(mean, (mean - margin, mean + margin))


def compared(rows: Sequence[ComparisonRow]) -> list[dict[str, Any]]:
    """Compare rows with the first one, by accuracy; returns flat records with figures in %.

    ``verdict`` says whether the difference's interval excludes 0, in words.
    """
    return [
        _record(key, row, rows[0]) for key in ACCURACY_COLUMNS for row in rows if key in row.scores
    ]


def _record(key: str, row: ComparisonRow, reference: ComparisonRow) -> dict[str, Any]:
    scores, difference, verdict = row.scores[key], None, ""
    accuracy = paired_difference(np.zeros((1, scores.shape[1])), scores)
    if len(scores) == 1 and key != "hm":
        accuracy = Accuracy(accuracy.value, wilson(round(scores.sum()), scores.size))
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
