"""Summary of a finished run: accuracies and the paths of classifier and report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from kdpl.metrics import ACC, CHANCE, MAP, NOVEL_ACC, NOVEL_MAP, SUMMARY_COLUMNS, test_key
from kdpl.runtime.advice import command
from kdpl.runtime.files import write_json
from kdpl.runtime.predictions import read_results
from kdpl.runtime.run_folder import (
    CLASSIFIER_FOLDER,
    PROBE_FOLDER,
    REPORT_FILE,
    RESULTS_FILE,
    SUMMARY_FILE,
)

_STUDENT, _PROBE = "student, distilled", "linear probe of the student's network"


def summarize(console: Any, out: Path, nothing_done: bool) -> None:
    """Print accuracies and paths, and write the accuracies into the run's folder."""
    # collect the results of the models that were tested
    untuned = out / "zero_shot" / "teacher"
    rows = {
        "teacher's CLIP, zero-shot": untuned,
        # without labels or prompts, the teacher is the original CLIP itself
        f"teacher, {'tuned' if (untuned / RESULTS_FILE).is_file() else 'zero-shot'}": out
        / "teacher",
        "student's CLIP, zero-shot": out / "zero_shot" / "student",
        _STUDENT: out / "student",
        "linear probe of the teacher's CLIP": out / PROBE_FOLDER / "teacher",
        _PROBE: out / PROBE_FOLDER / "student",
    }
    results = {title: row for title, folder in rows.items() if (row := read_results(folder))}
    if not nothing_done:
        write_json(out / SUMMARY_FILE, results)

    # print the accuracies
    console.print()
    if nothing_done:
        console.out(
            f"{out} is finished: nothing to do; remove the folder to run it again", highlight=False
        )
    console.print(_table(results) if results else "there are no test images: nothing was tested")

    # print the paths, of the better classifier first
    classifiers = [
        ("classifier", out / "student" / CLASSIFIER_FOLDER),
        ("probe", out / PROBE_FOLDER / CLASSIFIER_FOLDER),
    ]
    student, probe = (
        results.get(title, {}).get(test_key(ACC), 0.0) for title in (_STUDENT, _PROBE)
    )
    if not classifiers[1][1].is_dir():
        classifiers.pop()
    elif probe > student:
        console.out("on the test images, the linear probe is better than the student")
        classifiers.reverse()
    report = out / REPORT_FILE
    paths = [*classifiers, ("results", out / SUMMARY_FILE)]
    paths += [("report", report)] * report.is_file()
    for title, path in paths:
        # unlike print, this does not break a long path into lines
        console.out(f"{title:<11} {path}", highlight=False)
    console.out(f"use it: {command('predict', classifiers[0][1])} IMAGES…", highlight=False)


def _table(results: Mapping[str, dict[str, float]]) -> Any:
    # the columns that any model has a value for
    columns = {test_key(name): title for name, title in SUMMARY_COLUMNS.items()}
    columns = {
        key: title for key, title in columns.items() if any(key in row for row in results.values())
    }
    first = next(iter(results.values()))
    held_out = ", held out of the labelled ones" if first.get("held_out") else ""
    transductive = "transductive: unlabelled images of novel classes were seen in distillation"
    metrics = "mAP and F1" if test_key(MAP) in first else "accuracy"
    table = Table(
        title=f"{metrics} on {first['images']:.0f} test images{held_out}, %",
        title_justify="left",
        caption=transductive
        if {test_key(NOVEL_ACC), test_key(NOVEL_MAP)} & columns.keys()
        else None,
        caption_justify="left",
    )
    table.add_column("")
    for title in columns.values():
        table.add_column(title, justify="right")
    if test_key(CHANCE) in first:
        chance = {key: first[key.replace(MAP, CHANCE)] for key in columns if MAP in key}
        results = {"chance": chance, **results}
    for title, row in results.items():
        table.add_row(title, *(f"{100 * row[key]:.1f}" if key in row else "" for key in columns))
    return table
