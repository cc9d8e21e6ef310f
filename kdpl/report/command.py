"""The commands of the report: ``compare``, ``estimate``, ``report`` and ``suggest``."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from kdpl.cli.arguments import output_file
from kdpl.data.options import ClassOptions
from kdpl.errors import ConfigError, visible
from kdpl.runtime.files import write_json, write_text
from kdpl.runtime.markdown import escape_markdown
from kdpl.runtime.run_folder import (
    DATA_FOLDER,
    ESTIMATE,
    ESTIMATED,
    REPORT_FILE,
    require_run,
    runs_of,
)

ESTIMATE_FILE = "estimate.html"


def report(run: str, *, out: str | None = None) -> int:
    """Write report.html: what was trained and how well, in one file that needs no other.

    Args:
        run: the --out of run, or of a stage's fit
        out: file to write, instead of report.html in RUN
    """
    folder = Path(run)
    path = output_file("--out", out) if out is not None else folder / REPORT_FILE
    require_run(folder)

    from kdpl.report.page import render
    from kdpl.report.run_folder import Run
    from kdpl.runtime.messages import inform, quiet_libraries

    quiet_libraries()
    opened = replace(Run.find(folder), read_only=out is not None)
    inform("making the report: loading and timing both encoders")
    write_text(path, render(opened))
    print(f"report: {path}")
    return 0


def compare(
    runs: list[str],
    *,
    out: str | None = None,
    baselines: Literal["all", "zero-shot", "none"] = "all",
) -> int:
    """Compare the test accuracies of runs with the first run, on the same test images.

    A difference is called higher or lower if its 95 % interval excludes 0.

    Args:
        runs: the --out of run, or of a stage's fit; NAME=RUN,RUN,… are runs that differ only in the
            seed, compared by their means; a pattern, as in 'NAME=runs/few_*', stands for several
        out: Markdown file to write the table to as well
        baselines: rows for the original CLIPs of teacher and student, zero-shot and with a linear
            probe
    """
    path = output_file("--out", out) if out is not None else None
    if path is not None and path.suffix != ".md":
        raise ConfigError(f"--out {path} has an unknown ending, expected .md: give another")
    for argument in runs:
        runs_of(argument)  # refuses wrong folders before imports that take seconds

    from kdpl.report.compare import compare_runs, table_lines
    from kdpl.runtime.messages import quiet_libraries

    quiet_libraries()
    rows, notes = compare_runs(runs, baselines)
    print("\n".join(map(visible, [*table_lines(rows), "", *notes])))
    if path is not None:
        lines = table_lines(rows, escape_markdown)
        write_text(path, "\n".join([*lines, *(f"\n{escape_markdown(note)}" for note in notes), ""]))
        print(f"table: {path}")
    return 0


def estimate(
    path: str,
    *,
    teacher: list[str] = [],  # noqa: B006 - the parser copies it
    student: list[str] = [],  # noqa: B006 - the parser copies it
    class_names: str | None = None,
    out: str | None = None,
    seed: int = 1,
    shots: NonNegativeInt | None = None,
) -> int:
    """Estimate what run PATH will be worth, from frozen features, before anything is trained.

    Writes estimate.html: expected test accuracies with intervals, what fewer and more labels give,
    weak classes, and what to do next.

    Args:
        path: folder or table of the images, as for run; test images are not looked at
        teacher: config of the teacher, as for run, whose original CLIP is measured; may be repeated
        student: config of the student, as for run; may be repeated
        class_names: file with the names of all classes, as for run
        out: folder to write into, by default runs/NAME_estimate with the name of PATH
        seed: seed of views and samples
        shots: labelled images a class, as for run
    """
    from kdpl.cli.run import require_folder_of
    from kdpl.runtime.advice import absolute, command

    name = absolute(path).stem
    folder = Path(out or Path("runs") / f"{absolute(path).name}{ESTIMATE}")
    require_folder_of("an estimate", folder, ESTIMATE_FILE, (DATA_FOLDER,))

    from kdpl.cli.run_defaults import Options

    settings = [] if shots is None else [f"--data.init_args.shots={shots}"]
    options = Options(teacher=teacher, student=student, settings=settings, seed=seed)
    options.files()  # refuses mistyped names before imports that take seconds

    from kdpl.cli.prepare import survey_and_choose

    choice = survey_and_choose(path, folder, options, ClassOptions(class_names))

    from kdpl.report.estimate.expected import describe
    from kdpl.report.estimate.folds import STUDENT, measure
    from kdpl.report.estimate.inputs import gather
    from kdpl.report.page import fill
    from kdpl.runtime.messages import inform

    # marks the folder
    write_text(folder / ESTIMATE_FILE, "This estimate was not finished: start it again.")
    frozen, names = gather(choice, folder, options)
    inform("predicting images, each without its label")
    values = describe(frozen, measure(frozen), names)
    words = options.words() + settings
    words += ["--class-names", Path(class_names)] if class_names else []
    if (taken := Path("runs") / name).exists():
        words += ["--out", taken.with_name(f"{name}_run")]
    run = options.way_here() + command("run", Path(path), *words)
    values |= {"name": name, "command": run, "searches": choice.search and not student}
    write_text(folder / ESTIMATE_FILE, fill("estimate.html.jinja", **values))
    expected = values["expected"]
    if values["judged"]:
        kept = {"path": choice.path, "student": expected.rows[STUDENT]._asdict()}
        write_json(folder / ESTIMATED, kept)
    print(fill("estimate.txt.jinja", **values) + f"page: {folder / ESTIMATE_FILE}")
    return 0


def suggest(
    run: str,
    *,
    out: str,
    images: PositiveInt | None = None,
    pool: PositiveInt = 10_000,
) -> int:
    """Choose the images to label next, and point out labels that look wrong, from 8 a class on.

    Both rest on the teacher of a finished run. Writes labels.csv, a table to fill in, and
    suggestions.html, a page to look through.

    Args:
        run: the --out of run, or of a stage's fit
        out: folder to write into
        images: number of images to label, by default 4 for each class
        pool: images without a label that are looked at; if there are more, that many drawn at
            random
    """
    require_run(Path(run))

    from kdpl.report.labeling.page import PAGE, TABLE, Suggestions
    from kdpl.report.run_folder import Run
    from kdpl.runtime.messages import quiet_libraries

    folder = Path(out)
    # somebody may have filled in the table
    if (folder / TABLE).exists():
        raise ConfigError(f"{folder / TABLE} exists already: choose another --out, or remove it")
    quiet_libraries()
    opened = Run.find(Path(run))
    suggestions = Suggestions.of(opened, images, pool)
    suggestions.save(folder)
    wrong, doubtful = "", suggestions.doubtful
    if doubtful is not None:
        wrong = f", {len(doubtful)} labels that look wrong"
    print(f"{len(suggestions.to_label)} images to label{wrong}: {folder / TABLE}")
    for note in suggestions.notes:
        print(f"  {note}")
    print(f"to look through: {folder / PAGE}")
    print("fill in the column label, and take it over into your labels: docs/labelling.md")
    return 0
