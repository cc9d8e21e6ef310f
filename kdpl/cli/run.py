"""``python -m kdpl run``: both stages and their tests in order."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveFloat

from kdpl.cli import find_command
from kdpl.data.options import ClassOptions
from kdpl.errors import ConfigError, KdplError, visible
from kdpl.runtime.advice import absolute
from kdpl.runtime.configs import read_config
from kdpl.runtime.faults import mark
from kdpl.runtime.files import write_json
from kdpl.runtime.run_folder import (
    CLASS_VECTORS_FILE,
    CLASSIFIER_FOLDER,
    DATA_FOLDER,
    DECODED_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    RUN_FILE,
    STAGE_FOLDERS,
    SUMMARY_FILE,
)
from kdpl.runtime.steps import LocalStep, take_decoded

if TYPE_CHECKING:
    from rich.console import Console

    from kdpl.cli.stage_cli import KdplCLI


def run(
    path: str | None = None,
    *,
    config: list[str] = [],  # noqa: B006 - the parser copies it
    teacher: list[str] = [],  # noqa: B006 - the parser copies it
    student: list[str] = [],  # noqa: B006 - the parser copies it
    out: str | None = None,
    seed: int = 1,
    shots: NonNegativeInt | None = None,
    search: list[PositiveFloat] | None = None,
    tuned: bool = False,
    until: Literal["targets"] | None = None,
    class_names: str | None = None,
    label_separator: str | None = None,
    settings: list[str],
) -> int:
    """Prepare a teacher, freeze class vectors, distil a student, test both, write a report.

    With PATH, your images are surveyed, trainer, teacher, student and target are chosen unless you
    give them, and the command that names them is printed. Any other option, such as
    --trainer.max_epochs 5, is passed on to both stages. An interrupted run is resumed by the same
    command.

    Args:
        path: Folder with <class>/…, or train/<class>/… and test/<class>/…, and unlabeled/…; or a
            table, as for init. Write it before all options.
        config: Config for both stages: data, trainer, logger; a file, or the name of one that ships
            with kdpl, such as trainer/gpu; may be repeated.
        teacher: Config for stage 1 alone; a file, or a name such as promptsrc_vit_l14; may be
            repeated. Required without PATH.
        student: Config for stage 2 alone; a file, or a name such as promptkd_vit_b16; may be
            repeated. Required without PATH. With PATH, a target follows unless a config sets one.
        out: The run's folder; with PATH, by default runs/NAME with the name of PATH.
        seed: Seed of sampling, initialisation and order.
        shots: Labelled images a class, short for --data.init_args.shots; with 0 the teacher is the
            original CLIP.
        search: Choose what of the student is trained before it is distilled, by short fits that are
            compared without labels: the student as configured, and its whole image tower at these
            learning rates (default: 0.0001 0.0003 0.001). Costs about one more fit.
        tuned: With PATH, tune the teacher's prompts on the labels, and distil its predictions, as
            published; otherwise the labels correct the predictions of the original CLIP.
        until: End with the student's refined targets, the table pool_targets.csv in the folder of
            the student; the command without it goes on from there.
        class_names: With PATH, file with the names of all classes, as for init.
        label_separator: With a table as PATH, character between two classes of a label, as for
            init.
        settings: Options for both stages.
    """
    from kdpl.cli.run_defaults import Options

    # choose what is not given
    classes = ClassOptions(class_names, label_separator=label_separator)
    if path is None:
        _require_options({"--teacher": teacher, "--student": student, "--out": out}, classes)
        if tuned:
            raise ConfigError(
                "--tuned is for PATH: without it, a teacher is tuned unless --teacher zero_shot "
                "follows its config"
            )
    folder = Path(out or Path("runs") / absolute(path or "").stem)
    # a stage may exist already, imported for example
    require_folder_of("a run", folder, RUN_FILE, (*STAGE_FOLDERS, DATA_FOLDER))
    settings = [f"--data.init_args.shots={shots}", *settings] if shots is not None else settings
    options = Options(config, teacher, student, search, settings, seed, tuned)
    options.files()  # refuses mistyped names before imports that take seconds

    from kdpl.cli.prepare import complete, parse_stages

    if path is not None:
        options = complete(path, folder, options, classes)

    # find the configs, and parse the settings of each stage
    stages = parse_stages(folder, options)
    record = {"configs": options.files(), "seed": seed, "settings": options.settings}
    steps = _steps(folder, stages, options.search)
    if until is not None:
        steps = [steps[0], _targets(stages["student"], folder / "student")]
    _carry_out(folder, stages, steps, record, whole=until is None)
    return 0


def _carry_out(
    folder: Path,
    stages: "Mapping[str, KdplCLI]",
    steps: Sequence[LocalStep],
    record: Mapping[str, Any],
    whole: bool,
) -> None:
    from rich.console import Console

    from kdpl.cli.run_summary import summarize
    from kdpl.runtime.lock import locked
    from kdpl.runtime.messages import process_rank

    os.environ.setdefault("WANDB_RUN_GROUP", folder.name)
    # the stages are runs of their own
    os.environ.pop("WANDB_RUN_ID", None)
    first = process_rank() == 0

    def due(step: LocalStep) -> bool:
        # the tests come last, when the student's run says which images there are
        return not step.done() and (step.kind != "test" or tested())

    tested = cache(partial(_has_test_images, stages["student"]))
    # the results are written last
    unfinished = any(map(due, steps)) or (whole and not (folder / SUMMARY_FILE).is_file())
    with ExitStack() as at_end:
        if first and unfinished:
            at_end.enter_context(locked(folder))
        # check the settings of all stages before the teacher is tuned
        for stage in stages.values():
            stage.check_all()
        if first and unfinished:
            write_json(folder / RUN_FILE, record)
        # do what is missing
        console = Console(quiet=not first)
        for number, step in enumerate(steps, start=1):
            try:
                if due(step):
                    _do(number, steps, console, folder)
            except (Exception, KeyboardInterrupt) as error:
                if number > 1:
                    mark(error, f"step {number - 1} of {len(steps)} is finished and kept")
                raise
        if first and not whole:
            console.out(f"targets     {steps[-1].result}", highlight=False)
        # report and summarize
        elif first:
            # unless it is written already
            if unfinished or not (folder / REPORT_FILE).is_file():
                find_command("report")(str(folder))
            summarize(console, folder, nothing_done=not unfinished)


def _require_options(required: Mapping[str, Any], classes: ClassOptions) -> None:
    missing = ", ".join(option for option, value in required.items() if not value)
    if missing:
        raise ConfigError(
            f"run lacks {missing}: give the folder of your images, as in python -m kdpl run "
            "my_images, or these options; python -m kdpl run --help tells more"
        )
    for value in vars(classes).values():
        if value is not None:
            raise ConfigError(
                f"{value!r} says how PATH is read, but there is none: give the folder or table of "
                "your images before all options"
            )


def _steps(
    out: Path, stages: "dict[str, KdplCLI]", rates: Sequence[float] | None
) -> list[LocalStep]:
    """Return the steps, fits first; a search replaces the student's settings in ``stages``."""
    from kdpl.cli.fit import run_stage
    from kdpl.cli.prepare import is_tuned, untuned
    from kdpl.cli.search import CHOSEN_FILE, candidates_of, compare
    from kdpl.clip.loading import has_text_tower

    def step(kind: str, title: str, result: Path, stage: "Callable[[], KdplCLI]") -> LocalStep:
        return LocalStep(title, kind, result, lambda: run_stage(stage()))

    def test(name: str) -> LocalStep:
        result = out / name / RESULTS_FILE
        return step("test", f"test the {name}", result, lambda: stages[name].derive({}, "test"))

    def zero_shot(name: str) -> LocalStep:
        # the untuned teacher, with the stage's CLIP
        folder = out / "zero_shot" / name
        clip = stages[name].config.model.init_args.clip.as_dict()
        values = {"out": str(folder), "model": {"init_args": {"clip": clip}}}
        stage = partial(untuned(stages["teacher"]).derive, values, "test")
        title = f"test the {name}'s original CLIP (zero-shot)"
        return step("test", title, folder / RESULTS_FILE, stage)

    tuned = is_tuned(stages["teacher"])
    tuning = "tune the teacher" if tuned else "the teacher is the original CLIP"
    teacher = step(
        "fit",
        f"stage 1: {tuning}, freeze class vectors",
        out / "teacher" / CLASS_VECTORS_FILE,
        lambda: stages["teacher"],
    )
    distil = step(
        "fit",
        "stage 2: distil the student, write the classifier",
        out / "student" / CLASSIFIER_FOLDER,
        lambda: stages["student"],
    )
    searches = list[LocalStep]()
    if rates is not None:
        student, folder = stages["student"], out / "search"
        if distil.done() and not folder.exists():
            raise ConfigError(
                f"{distil.folder} was distilled, and {folder} does not exist: remove the first to "
                "search, leave --search out, or choose another --out"
            )
        candidates = candidates_of(student, folder, rates)

        def choose() -> None:
            decoded = out / "teacher" / DECODED_FILE
            stages["student"] = compare(student, candidates, folder, decoded)

        # it is done with the student's fit: until then finished candidates compare their settings
        title = "search what of the student is trained"
        searches = [replace(distil, kind="search", title=title, start=choose)]
        if (chosen := folder / CHOSEN_FILE).is_file():
            stages["student"] = student.derive(read_config(str(chosen)))
    student_clip = stages["student"].config.model.init_args.clip.model
    return [
        teacher,
        *searches,
        distil,
        test("teacher"),
        test("student"),
        *([zero_shot("teacher")] if tuned else []),
        # a network of timm is no CLIP before it is distilled
        *([zero_shot("student")] if has_text_tower(student_clip) else []),
    ]


def _targets(student: "KdplCLI", folder: Path) -> LocalStep:
    from lightning.pytorch.callbacks import LambdaCallback

    from kdpl.targets.refinement.pool_targets import POOL_TABLE

    if "refined" not in str(student.config.model.init_args.target).lower():
        raise ConfigError("--until targets is for refined targets: give --student refined as well")
    plan = LambdaCallback(on_fit_start=lambda _, module: module.plan_fit())
    return LocalStep(
        "the targets of the unlabelled images",
        "fit",
        folder / POOL_TABLE,
        lambda: student.without_steps(plan, {"max_epochs": 1}),
    )


def _has_test_images(student: "KdplCLI") -> bool:
    try:
        data = student.data()
        data.reading.of_run(student.folder)
        return bool(data.splits.test)
    except KdplError:
        # the test says what is wrong
        return True


def _do(number: int, steps: Sequence[LocalStep], console: "Console", out: Path) -> None:
    from kdpl.runtime.messages import process_rank

    step = steps[number - 1]
    if process_rank() == 0 and step.kind == "fit":
        # what was tested of the stage before is something else
        for test in steps:
            if test.kind == "test" and test.folder.name == step.folder.name:
                test.result.unlink(missing_ok=True)
    console.rule(f"[bold]{number}/{len(steps)} {step.title}", align="left")
    for earlier in (out / DATA_FOLDER, out / "teacher"):
        take_decoded(earlier / DECODED_FILE, step.folder)
    step.start()


def require_folder_of(kind: str, out: Path, marker: str, expected: Sequence[str]) -> None:
    """Refuse a folder of more than what is expected, unless it has the file that marks it."""
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    foreign = [name for name in names if not name.startswith(".") and name not in expected]
    if foreign and not (out / marker).is_file():
        raise ConfigError(
            f"--out {out} contains something other than {kind} ({visible(min(foreign))}): choose "
            "another --out or empty it"
        )
