"""Baselines of a comparison: the original CLIPs.

They are tested zero-shot and with linear probes on their frozen features.
"""

from collections.abc import Mapping, Sequence
from itertools import product

from kdpl.errors import ArtifactError, KdplError
from kdpl.report.compare import ComparisonRow
from kdpl.report.intervals import scores_of
from kdpl.report.probes import clip_of, linear_probe
from kdpl.report.run_folder import Run, Stage


def baselines(
    groups: Mapping[str, Sequence[Run]], with_probes: bool
) -> tuple[list[ComparisonRow], list[str]]:
    """Make rows of the original CLIPs of teachers and students, each once.

    Returns the rows, and notes about them.
    """
    rows: dict[tuple[str, bytes], ComparisonRow] = {}
    choices, notes = [], []
    kinds = ["zero-shot accuracy", *(["linear probe"] if with_probes else [])]
    for what, role, (name, runs) in product(kinds, ("teacher", "student"), groups.items()):
        if role not in runs[0].stages:
            continue
        try:
            if what == "linear probe":
                row, choice = _probe(runs, role)
                choices.append(choice)
            else:
                row = _zero_shot(runs, role)
            rows.setdefault(
                (row.name, b"".join(each.tobytes() for each in row.scores.values())), row
            )
        except (KdplError, OSError) as error:
            notes.append(f"no {what} of the {role}'s CLIP for {name}: {error}")
    return list(rows.values()), list(dict.fromkeys([*choices, *notes]))


def _zero_shot(runs: Sequence[Run], role: str) -> ComparisonRow:
    clip = clip_of(runs[0].stages[role])
    # a teacher without labels is the original CLIP itself
    untuned = role == "teacher" and runs[0].untuned
    stage: Stage | None = runs[0].teacher if untuned else getattr(runs[0], f"{role}_clip")
    if stage is None or not stage.folder.is_dir():
        raise ArtifactError(f"{runs[0].folder} has no test of {clip}, which run makes of a CLIP")
    return ComparisonRow.of(f"zero-shot: {clip}", [], [scores_of(runs[0], stage)])


def _probe(runs: Sequence[Run], role: str) -> tuple[ComparisonRow, str]:
    """Score the probes of runs; returns a note on how C was chosen as well."""
    made = [linear_probe(run, role) for run in runs]
    last = made[-1].about
    name = f"linear probe: {last['network']}, {last['labels']} labels"
    strengths = ", ".join(f"{probe.about['C']:g}" for probe in made)
    row = ComparisonRow.of(name, [run.seed for run in runs], [probe.scores for probe in made])
    return row, f"{name}: C = {strengths}, {last['how']}"
