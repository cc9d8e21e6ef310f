"""Comparison of runs: test accuracies, and differences to the first run on the same images."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np

from kdpl.errors import ArtifactError, ConfigError
from kdpl.metrics import ACC, ACCURACY_COLUMNS, NOVEL_ACC
from kdpl.report.intervals import Accuracy, Scores, accuracy_of, paired_difference, scores_of
from kdpl.report.probes import clip_of, linear_probe
from kdpl.report.run_folder import Run, Stage, attempt
from kdpl.runtime.markdown import markdown_rows
from kdpl.runtime.run_folder import runs_of


class Compared(NamedTuple):
    """A row's accuracy on some classes, and its difference to the first row, if it has one.

    ``verdict`` says in words whether the interval of the difference excludes 0.
    """

    classes: str
    name: str
    seeds: int
    accuracy: Accuracy
    difference: Accuracy | None = None
    verdict: str = ""


class ComparisonRow(NamedTuple):
    """A row of the table: its S seeds, none for a baseline without seeds, and scores [S, N].

    ``choice`` says how the regularisation of a probe was chosen.
    """

    name: str
    seeds: Sequence[int]
    scores: Scores
    choice: str = ""

    @classmethod
    def of(cls, name: str, seeds: Sequence[int], scored: Sequence[Scores]) -> "ComparisonRow":
        """Stack the scores of seeds, for the accuracies that all seeds have."""
        keys = [key for key in scored[0] if all(key in scores for scores in scored)]
        return cls(name, seeds, {key: np.stack([scores[key] for scores in scored]) for key in keys})


def find_groups(arguments: Sequence[str]) -> dict[str, list[Run]]:
    """Find the runs of each row of a comparison, in the order of their seeds."""
    groups: dict[str, list[Run]] = {}
    for name, folders in map(runs_of, arguments):
        if name in groups:
            raise ConfigError(
                f"two of the runs are called {name}: name them, as in first=RUN second=RUN"
            )
        groups[name] = sorted((Run.find(folder) for folder in folders), key=lambda run: run.seed)
        if len({run.seed for run in groups[name]}) < len(folders):
            raise ConfigError(
                f"two runs of {name} have the same seed: give runs that differ in the seed"
            )
    # differences are paired, so all runs need the same test images
    first, *rest = (run for runs in groups.values() for run in runs)
    for run in rest:
        _require_same_test(run, first)
    return groups


def _require_same_test(run: Run, first: Run) -> None:
    # an image may have several paths
    images = [
        [f"{os.path.realpath(p.source)} of class {p.label}" for p in compared_run.main.predictions]
        for compared_run in (run, first)
    ]
    names = run.vectors.class_names, first.vectors.class_names
    for what, (tested, expected) in {"classes": names, "test images": images}.items():
        differing = [f"{a} and {b}" for a, b in zip(tested, expected, strict=False) if a != b]
        if len(tested) != len(expected):
            # this says more than the first difference
            differing = [f"{len(tested)} and {len(expected)}"]
        if differing:
            raise ArtifactError(
                f"{run.folder} was tested on other {what} than {first.folder} ({differing[0]}): "
                "compare only runs with the same test"
            )


def compare_runs(arguments: Sequence[str], kind: str) -> tuple[list[Compared], list[str]]:
    """Return the figures of a comparison, with baselines of a ``kind``, and notes on them."""
    # a row for each group of runs, then the baselines
    groups = find_groups(arguments)
    rows = [
        ComparisonRow.of(name, [run.seed for run in group], [scores_of(r, r.main) for r in group])
        for name, group in groups.items()
    ]
    images = rows[0].scores[ACC].shape[1]
    over = "images and seeds" if any(len(row.seeds) > 1 for row in rows) else "images"
    notes = [
        f"accuracy in % on {images} test images, with 95 % intervals, paired for differences, "
        f"over {over}"
    ]
    if any(NOVEL_ACC in row.scores for row in rows):
        notes.append("transductive: unlabelled images of novel classes were seen in distillation")
    if kind != "none":
        added_rows, added_notes = baselines(groups, with_probes=kind == "all")
        rows, notes = rows + added_rows, notes + added_notes
    return compared(rows), notes


def baselines(
    groups: Mapping[str, Sequence[Run]], with_probes: bool
) -> tuple[list[ComparisonRow], list[str]]:
    """Return rows, each once, and notes on the original CLIPs of teachers and students."""
    rows: dict[tuple[str, bytes], tuple[ComparisonRow, str]] = {}
    notes = []
    kinds = [("zero-shot accuracy", _zero_shot)]
    if with_probes:
        kinds.append(("linear probe", _probe))
    # row and scores identify a baseline that several groups share
    for (what, make), role, (name, runs) in product(kinds, ("teacher", "student"), groups.items()):
        if role not in runs[0].stages:
            continue
        row, gap = attempt(partial(make, runs, role))
        if row is None:
            notes.append(f"no {what} of the {role}'s CLIP for {name}: {gap}")
            continue
        scores = b"".join(values.tobytes() for values in row.scores.values())
        rows.setdefault((row.name, scores), (row, name))
    # probes of one network with different labels share a name
    uses = Counter(row.name for row, _ in rows.values())
    named = [
        row._replace(name=f"{row.name}, of {of}") if uses[row.name] > 1 else row
        for row, of in rows.values()
    ]
    choices = [f"{row.name}: {row.choice}" for row in named if row.choice]
    return named, list(dict.fromkeys([*choices, *notes]))


def _zero_shot(runs: Sequence[Run], role: str) -> ComparisonRow:
    run, clip = runs[0], clip_of(runs[0].stages[role])
    # a teacher without labels is the original CLIP itself
    untuned = role == "teacher" and run.untuned
    stage: Stage | None = run.teacher if untuned else getattr(run, f"{role}_clip")
    if stage is None or not stage.folder.is_dir():
        raise ArtifactError(f"{run.folder} has no test of {clip}, which run makes of a CLIP")
    return ComparisonRow.of(f"zero-shot: {clip}", [], [scores_of(run, stage)])


def _probe(runs: Sequence[Run], role: str) -> ComparisonRow:
    scored, probes = zip(*(linear_probe(run, role) for run in runs), strict=True)
    last, strengths = probes[-1], ", ".join(f"{probe['C']:g}" for probe in probes)
    name = f"linear probe: {last['network']}, {last['labels']} labels"
    row = ComparisonRow.of(name, [run.seed for run in runs], scored)
    return row._replace(choice=f"C = {strengths}, {last['how']}")


def compared(rows: Sequence[ComparisonRow]) -> list[Compared]:
    """Compare rows with the first one, for each accuracy that they have."""
    first, compared_rows = rows[0], []
    for (key, classes), row in product(ACCURACY_COLUMNS.items(), rows):
        if key in row.scores:
            scores = row.scores[key]
            figures = Compared(classes, row.name, len(row.seeds), accuracy_of(key, scores))
            if row is not first and key in first.scores:
                difference = paired_difference(first.scores[key], scores, row.seeds == first.seeds)
                low, high = difference.interval
                verdict = "higher" if low > 0 else "lower" if high < 0 else "not clear"
                figures = figures._replace(difference=difference, verdict=verdict)
            compared_rows.append(figures)
    return compared_rows


def table_lines(rows: Sequence[Compared], escape: Callable[[str], str] = str) -> list[str]:
    """Return the lines of a Markdown table, with figures in %."""
    lines = [["classes", "", "accuracy", f"difference to {rows[0].name}", ""]]
    for row in rows:
        seeds = f" ({row.seeds} seeds)" if row.seeds > 1 else ""
        difference = "" if row.difference is None else _figures(row.difference, "+")
        figures = [_figures(row.accuracy), difference.replace("-", "−"), row.verdict]
        lines.append([row.classes, row.name + seeds, *figures])
    # the column of classes is left out where all rows have the same
    labels = 1 if len({row.classes for row in rows}) == 1 else 2
    cells = [[escape(text) for text in line[2 - labels :]] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    formats = [f"{'<' if i < labels else '>'}{width}" for i, width in enumerate(widths)]
    return markdown_rows([[*map(format, line, formats)] for line in cells], 3)


def _figures(accuracy: Accuracy, sign: str = "") -> str:
    percent = [round(100 * share, 4) for share in (accuracy.value, *accuracy.interval)]
    value, low, high = (f"{figure:{sign}.1f}" for figure in percent)
    return f"{value} [{low}, {high}]"
