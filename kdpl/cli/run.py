"""``python -m kdpl run``: both stages and their tests, each by the very command that a person would type."""

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kdpl.cli.arguments import Parser
from kdpl.errors import ConfigError, visible
from kdpl.report import FILE as REPORT_FILE
from kdpl.runtime import slurm
from kdpl.runtime.configs import read_config, require_configs
from kdpl.runtime.files import atomic_path
from kdpl.runtime.launch import of_several
from kdpl.runtime.predictions import RESULTS_FILE, read_results
from kdpl.runtime.processes import ENDED_FROM_OUTSIDE, check_fits, in_own_process, run_step
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER
from kdpl.runtime.run_lock import RunLock, tidy

ORDER_FILE = "run.json"
SUMMARY_FILE = "results.json"

# a name only, since this process imports neither torch nor Lightning
_CONFIG = "config.yaml"

_NO_PROMPTS = ("--model.init_args.vision_prompts.depth=0", "--model.init_args.text_prompts.depth=0")
_COLUMNS = {"test/acc": "all", "test/base_acc": "base", "test/novel_acc": "novel", "test/hm": "HM"}


@dataclass(frozen=True)
class Step:
    """One command of the run.

    Attributes:
        title: What it does, for people.
        args: Arguments of ``python -m kdpl``.
        result: What is there once it is done.
    """

    title: str
    args: tuple[str, ...]
    result: Path


def run(argv: Sequence[str]) -> int:
    """Do stage 1, freeze, stage 2, tests, classifier and report; go on where it was cut; say so if all is done.

    Args:
        argv: Arguments after ``run``.

    Returns:
        The exit code of the step that failed or was requeued, or 0.

    Raises:
        ConfigError: A config file is missing or wrong, or the folder holds a run of other configs.
    """
    options, overrides = _parse(argv)
    if of_several():
        raise ConfigError(
            "run was started by several processes at once: start it once, without srun or torchrun (within a Slurm job "
            "of several tasks it starts each step with srun), or start fit with them, stage by stage"
        )
    out = Path(options.out)
    _require_own_folder(out)
    orders = _orders(options, overrides)
    console = Console()
    os.environ.setdefault("WANDB_RUN_GROUP", out.name)
    # the stages are runs of their own
    os.environ.pop("WANDB_RUN_ID", None)
    steps = _steps(options, overrides)
    with ExitStack() as held:
        locked = out.is_dir() and bool(_open(steps))
        if locked:
            # before anything in it is believed
            held.callback(RunLock(out).release)
        open_steps = _open(steps)
        # What is wrong with the student's settings is better known before the teacher has been tuned than after. Asked
        # for something else than before, finished stages are looked at as well: they know which setting it is.
        checked = steps if _other_orders(out, orders) else open_steps
        fits = [list(step.args) for step in checked if step.args[0] == "fit"]
        if fits:
            code = in_own_process(check_fits, fits)
            if code != 0:
                return code
        if open_steps:
            if not locked:
                held.callback(RunLock(out).release)
            with atomic_path(out / ORDER_FILE) as temporary:
                temporary.write_text(json.dumps(orders, indent=2), encoding="utf-8")
        elif not locked:
            tidy(out)
        code = _do(steps, console, out)
        if code == 0:
            if open_steps or not (out / REPORT_FILE).is_file():
                code = in_own_process(run_step, ["report", str(out), "--trust"])
            if code not in ENDED_FROM_OUTSIDE:
                _summarize(console, out, nothing_done=not open_steps)
    return code


def _open(steps: list[Step]) -> list[Step]:
    return [step for step in steps if not step.result.exists()]


def _do(steps: list[Step], console: Console, out: Path) -> int:
    """Do what is not done yet; gives the exit code of the step that failed, or 0."""
    for number, step in enumerate(steps, start=1):
        if step.result.exists():
            tidy(step.result.parent)
            continue
        if slurm.signalled():
            raise slurm.requeue(str(out))
        console.rule(f"[bold]{number}/{len(steps)} {step.title}", align="left")
        code = in_own_process(run_step, _resolve(step.args))
        if slurm.died_of_notice(code):
            raise slurm.requeue(str(out))
        if code != 0:
            return code
        if not step.result.exists():
            raise ConfigError(f"{step.title} ended without {step.result}: start the same command again to go on")
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="python -m kdpl run",
        allow_abbrev=False,
        description="Tune a teacher, freeze class vectors, distil a student, test both, write classifier and report.",
        epilog="Any other option, such as --data.init_args.shots 4, is passed on to both stages.",
    )
    parser.add_argument("--config", action="append", default=[], help="config for both stages: data, trainer, logger")
    parser.add_argument("--teacher", action="append", required=True, help="config for stage 1 alone")
    parser.add_argument("--student", action="append", required=True, help="config for stage 2 alone")
    parser.add_argument("--out", required=True, help="the run's folder")
    parser.add_argument("--seed", type=int, default=1, help="seed of sampling, initialisation and order (default 1)")
    options, overrides = parser.parse_known_args(argv)
    require_configs((*options.config, *options.teacher, *options.student))
    return options, overrides


def _steps(options: argparse.Namespace, overrides: list[str]) -> list[Step]:
    out = Path(options.out)
    teacher, student = out / "teacher", out / "student"
    shared = [f"--config={file}" for file in options.config]
    common = [f"--seed_everything={options.seed}", *overrides]

    def fit(stage: Path, configs: list[str], result: str, *more: str) -> tuple[tuple[str, ...], Path]:
        args = ("fit", *shared, *(f"--config={file}" for file in configs), f"--out={stage}", *more, *common)
        return args, stage / result

    def test(stage: Path) -> tuple[tuple[str, ...], Path]:
        return ("test", f"--config={stage / _CONFIG}"), stage / RESULTS_FILE

    def zero_shot(stage: Path) -> tuple[tuple[str, ...], Path]:
        # the teacher's config without prompts is the zero-shot CLIP; {clip} is filled in with the stage's own CLIP
        folder = out / "zero_shot" / stage.name
        args = ("test", f"--config={teacher / _CONFIG}", *_NO_PROMPTS, f"--clip-of={stage}", f"--out={folder}")
        return args, folder / RESULTS_FILE

    # both fits before the tests: whoever has no test images still gets a classifier
    return [
        Step("stage 1: tune the teacher, freeze class vectors", *fit(teacher, options.teacher, CLASS_VECTORS_FILE)),
        Step(
            "stage 2: distil the student, write the classifier",
            *fit(student, options.student, CLASSIFIER_FOLDER, f"--model.init_args.teacher={teacher}"),
        ),
        Step("test the teacher", *test(teacher)),
        Step("test the student", *test(student)),
        Step("test the teacher's CLIP as it came (zero-shot)", *zero_shot(teacher)),
        Step("test the student's CLIP as it came (zero-shot)", *zero_shot(student)),
    ]


def _resolve(args: Sequence[str]) -> list[str]:
    """Fill in which CLIP a zero-shot test is of, which the stage's own config knows once its fit has begun."""
    resolved: list[str] = []
    for arg in args:
        if arg.startswith("--clip-of="):
            config = read_config(str(Path(arg.removeprefix("--clip-of=")) / _CONFIG))
            settings = config["model"]["init_args"]
            resolved.append(f"--model.init_args.clip={json.dumps(settings['clip'])}")
        else:
            resolved.append(arg)
    return resolved


def _orders(options: argparse.Namespace, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """What each stage was asked to do."""

    def contents(files: list[str]) -> list[str]:
        return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]

    shared = {"--config": contents(options.config), "--seed": options.seed, "other options": overrides}
    return {
        "teacher": {**shared, "--teacher": contents(options.teacher)},
        "student": {**shared, "--student": contents(options.student)},
    }


def _require_own_folder(out: Path) -> None:
    """Refuse a file, or a folder with anything that is not of a run."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file, expected a folder or a new name: choose another --out")
    # a stage may be there already, imported for example; hidden is what a start leaves that was refused or killed
    own = ("teacher", "student")
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    foreign = [name for name in names if not name.startswith(".") and name not in own]
    if foreign and not (out / ORDER_FILE).is_file():
        raise ConfigError(
            f"--out {out} holds something else than a run ({visible(min(foreign))}): choose another --out, or empty it"
        )


def _other_orders(out: Path, orders: dict[str, dict[str, Any]]) -> bool:
    file = out / ORDER_FILE
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")) != orders


def _summarize(console: Console, out: Path, nothing_done: bool) -> None:
    rows = {
        "teacher's CLIP, zero-shot": out / "zero_shot" / "teacher",
        "teacher, tuned": out / "teacher",
        "student's CLIP, zero-shot": out / "zero_shot" / "student",
        "student, distilled": out / "student",
    }
    results = {title: read_results(folder) for title, folder in rows.items()}
    if not nothing_done or not (out / SUMMARY_FILE).is_file():
        with atomic_path(out / SUMMARY_FILE) as temporary:
            temporary.write_text(json.dumps(results, indent=2), encoding="utf-8")
    columns = [key for key in _COLUMNS if all(key in row for row in results.values())]
    novel = "test/novel_acc" in columns
    some = next(iter(results.values()))
    held_out = ", held out of the labelled ones" if some.get("held_out") else ""
    table = Table(
        title=f"accuracy on {some['images']:.0f} test images{held_out}, %",
        title_justify="left",
        caption="transductive: unlabelled images of novel classes were seen in distillation" if novel else None,
        caption_justify="left",
    )
    table.add_column("")
    for key in columns:
        table.add_column(_COLUMNS[key], justify="right")
    for title, row in results.items():
        table.add_row(title, *(f"{100 * row[key]:.1f}" for key in columns))
    console.print()
    if nothing_done:
        console.print(f"{out} is finished: nothing to do; remove the folder to run it again")
    console.print(table)
    console.print(f"[bold]classifier[/bold]  {out / 'student' / CLASSIFIER_FOLDER}")
    console.print(f"[bold]results[/bold]     {out / SUMMARY_FILE}")
    console.print(f"[bold]report[/bold]      {out / REPORT_FILE}")
    for picture in sorted(out.glob("*/figures/*.png")):
        console.print(f"[bold]picture[/bold]     {picture}")
    console.print(f"use it: python -m kdpl predict {out / 'student' / CLASSIFIER_FOLDER} IMAGES…", soft_wrap=True)
