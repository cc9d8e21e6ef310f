"""The README's table of accuracies on the digits, over seeds: ``python -m kdpl.tiny.table``.

Runs what is missing in ``--out`` and can be cut and started again. With it come two controls, which say what the
distillation is worth, and one ablation, the published start of the student's prompts. Takes about a quarter of an
hour on two cores.
"""

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdpl.__main__ import main as kdpl
from kdpl.errors import KdplError
from kdpl.files import atomic_path
from kdpl.predictions import RESULTS_FILE, read_results

_SHARED = ("--config=configs/data/digits.yaml", "--config=configs/trainer/cpu.yaml")
_TEACHER = ("--config=configs/teacher/quickstart.yaml",)
_STUDENT = ("--config=configs/student/quickstart.yaml",)
_UNTUNED = ("--config=configs/teacher/zero_shot.yaml",)
_STUDENT_CLIP = ("--model.init_args.clip.model=tiny-student",)
_TWO_LAYERS = ("--model.init_args.vision_prompts.depth=2",)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        title: What it is, for people.
        folder: Name of its folder beside the others of a protocol and seed.
        args: Configs and settings of its fit, after those that all share.
        teacher: Folder of the teacher that it is distilled from, if any.
    """

    title: str
    folder: str
    args: tuple[str, ...]
    teacher: str | None = None


ROWS = (
    Row("teacher's CLIP, zero-shot", "teacher_zero_shot", (*_TEACHER, *_UNTUNED)),
    Row("student's CLIP, zero-shot", "student_zero_shot", (*_TEACHER, *_UNTUNED, *_STUDENT_CLIP)),
    Row("teacher, tuned", "teacher", _TEACHER),
    Row("**student, distilled**", "student", _STUDENT, "teacher"),
    Row(
        "ablation: published start of the prompts",
        "student_normal",
        (*_STUDENT, "--model.init_args.prompt_init=normal"),
        "teacher",
    ),
    Row("control: distilled from the untuned teacher", "student_of_untuned", _STUDENT, "teacher_zero_shot"),
    Row("control: the student's own few-shot tuning", "student_few_shot", (*_TEACHER, *_STUDENT_CLIP, *_TWO_LAYERS)),
)

_PROTOCOLS = {
    "all": ((), {"test/acc": "all 10 classes"}),
    "base_to_novel": (
        ("--config=configs/data/base_to_novel.yaml",),
        {"test/base_acc": "base 0–4", "test/novel_acc": "novel 5–9", "test/hm": "HM"},
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and print the table.

    Args:
        argv: Command-line arguments; None takes those of the process.

    Returns:
        0, or the exit code of the first command that failed.
    """
    parser = argparse.ArgumentParser(prog="python -m kdpl.tiny.table", description="Make the README's table again.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    options = parser.parse_args(argv)
    for protocol in _PROTOCOLS:
        for seed in options.seeds:
            for row in ROWS:
                code = _run(row, protocol, seed, options.out)
                if code != 0:
                    return code
    table = markdown(options.out, options.seeds)
    with atomic_path(options.out / "table.md") as temporary:
        temporary.write_text(table, encoding="utf-8")
    print(table)
    return 0


def _folder(out: Path, protocol: str, seed: int, name: str) -> Path:
    return out / protocol / f"seed_{seed}" / name


def _run(row: Row, protocol: str, seed: int, out: Path) -> int:
    folder = _folder(out, protocol, seed, row.folder)
    if (folder / RESULTS_FILE).is_file():
        return 0
    print(f"{protocol}, seed {seed}: {row.title.strip('*')}", flush=True)
    args = ["fit", *_SHARED, *_PROTOCOLS[protocol][0], *row.args, f"--seed_everything={seed}", f"--out={folder}"]
    if row.teacher is not None:
        args.append(f"--model.init_args.teacher={_folder(out, protocol, seed, row.teacher)}")
    return kdpl([*args, "--trainer.enable_progress_bar=false"]) or kdpl(
        ["test", f"--config={folder / 'config.yaml'}", "--trainer.enable_progress_bar=false"]
    )


def markdown(out: Path, seeds: Iterable[int]) -> str:
    """Write the table: mean ± standard deviation over seeds, in %."""
    seeds = list(seeds)
    titles = [title for _, columns in _PROTOCOLS.values() for title in columns.values()]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "--:|" * len(titles)]
    for row in ROWS:
        cells = [
            _cell([_value(_folder(out, protocol, seed, row.folder), key) for seed in seeds])
            for protocol, (_, columns) in _PROTOCOLS.items()
            for key in columns
        ]
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _value(folder: Path, key: str) -> float:
    results = read_results(folder)
    if key not in results:
        raise KdplError(f"{folder} has no {key} in its {RESULTS_FILE}: remove the folder and start again")
    return 100 * results[key]


def _cell(values: Sequence[float]) -> str:
    mean = statistics.mean(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    # what has no seed, the zero-shot CLIPs, has no spread
    return f"{mean:.1f} ± {spread:.1f}" if spread else f"{mean:.1f}"


if __name__ == "__main__":
    sys.exit(main())
