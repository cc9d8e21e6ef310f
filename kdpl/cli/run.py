"""``python -m kdpl run``: both stages and their tests in order, each as its own command."""

import argparse
import gc
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jsonargparse.typing import NonNegativeInt

from kdpl.errors import ConfigError, KdplError, visible
from kdpl.runtime import plugins, slurm
from kdpl.runtime.configs import find_config, read_config, require_configs
from kdpl.runtime.faults import mark
from kdpl.runtime.files import write_text
from kdpl.runtime.run_folder import (
    CLASS_VECTORS_FILE,
    CLASSIFIER_FOLDER,
    CONFIG_FILE,
    DECODED_FILE,
    RESULTS_FILE,
    RUN_FILE,
    STAGE_FOLDERS,
)

_NO_PROMPTS = (
    "--model.init_args.method=independent",
    "--model.init_args.vision_prompts.depth=0",
    "--model.init_args.text_prompts.depth=0",
)
# the teacher of no labels, as configs/teacher/zero_shot.yaml says for fit
_ZERO_SHOT = (
    *_NO_PROMPTS,
    "--model.init_args.averaging=null",
    "--trainer.max_epochs=0",
    "--trainer.limit_train_batches=0",
)
_SHOTS, _TARGET, _LOSS = (
    "data.init_args.shots",
    "model.init_args.target",
    "model.init_args.loss.kind",
)
_TEACHER = "model.init_args.teacher"
_REFINED = "refined"  # a target that a room brings


@dataclass(frozen=True)
class _Step:
    """One command of the run; its result exists once it is done."""

    title: str
    args: tuple[str, ...]
    result: Path
    # for a zero-shot test, the folder of the stage whose CLIP is tested
    clip_of: Path | None = None

    @property
    def clip(self) -> dict[str, Any]:
        """The settings of the CLIP that a zero-shot test is of."""
        config = read_config(str(cast(Path, self.clip_of) / CONFIG_FILE))
        return cast(dict[str, Any], config["model"]["init_args"]["clip"])

    @property
    def done(self) -> bool:
        """True if its result exists, or none is due, as for a timm network before distillation."""
        from kdpl.clip.timm_model import TIMM

        fitted = self.clip_of is not None and (self.clip_of / CONFIG_FILE).is_file()
        return self.result.exists() or (fitted and str(self.clip["model"]).startswith(TIMM))


def run(
    *,
    config: list[str] = [],  # noqa: B006 - the parser copies it
    teacher: list[str],
    student: list[str],
    out: str,
    seed: int = 1,
    shots: NonNegativeInt | None = None,
    teacher2: list[str] = [],  # noqa: B006 - the parser copies it
    settings: list[str],
) -> int:
    """Tune a teacher, freeze class vectors, distil a student, test both, write classifier, report.

    Any other option, such as --trainer.max_epochs 5, is passed on to both stages. An interrupted
    run is resumed by the same command.

    Args:
        config: Config for both stages: data, trainer, logger; a file, or the name of one that ships
            with kdpl, such as trainer/gpu; may be repeated.
        teacher: Config for stage 1 alone; a file, or a name such as promptsrc_vit_l14; may be
            repeated.
        student: Config for stage 2 alone; a file, or a name such as promptkd_vit_b16; may be
            repeated.
        out: The run's folder.
        seed: Seed of sampling, initialisation and order.
        shots: Labelled images a class, short for --data.init_args.shots; with 0 the teacher is the
            original CLIP.
        teacher2: Config for stage 1 of a second teacher, whose predictions are averaged with the
            first one's; may be repeated.
        settings: Options for both stages.
    """
    from rich.console import Console

    from kdpl.cli.fit import run_command
    from kdpl.cli.run_summary import summarize
    from kdpl.runtime.lock import RunLock
    from kdpl.runtime.messages import process_rank

    folders = {None: config, "teacher": teacher, "student": student}
    configs = [[find_config(each, folder) for each in files] for folder, files in folders.items()]
    configs.append([find_config(each, "teacher") for each in teacher2])
    require_configs(itertools.chain(*configs))
    folder = Path(out)
    _require_own_folder(folder)
    settings = [f"--{_SHOTS}={shots}", *settings] if shots is not None else settings
    steps = _steps(folder, configs, [f"--seed_everything={seed}", *settings])
    digests = [
        [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files] for files in configs
    ]
    orders = {"configs": digests, "seed": seed, "settings": settings}
    known = (
        json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if (folder / RUN_FILE).is_file()
        else orders
    )
    os.environ.setdefault("WANDB_RUN_GROUP", folder.name)
    # the stages are runs of their own
    os.environ.pop("WANDB_RUN_ID", None)
    first = process_rank() == 0
    unfinished = any(not step.done for step in _doable(steps, folder))
    with ExitStack() as at_end:
        if first and unfinished:
            at_end.callback(RunLock(folder).release)
        # the student's settings as well, before the teacher is tuned
        for step in steps:
            if step.args[0] == "fit" and (known != orders or not step.result.exists()):
                run_command(step.args, check_only=True)
        if first and unfinished:
            write_text(folder / RUN_FILE, json.dumps(orders, indent=2))
        console = Console(quiet=not first)
        for number, step in enumerate(_doable(steps, folder), start=1):
            try:
                _do(step, f"[bold]{number}/{len(steps)} {step.title}", console, folder)
            except (Exception, KeyboardInterrupt) as error:
                if number > 1:
                    mark(error, f"step {number - 1} of {len(steps)} is finished and kept")
                raise
        if first:
            for after_run in plugins.load_all("after_run").values():
                after_run(folder, unfinished)
            summarize(console, folder, nothing_done=not unfinished)
    return 0


def _steps(out: Path, configs: Sequence[Sequence[str]], more: list[str]) -> list[_Step]:
    shared, teacher_configs, student_configs, teacher2_configs = configs
    teacher, teacher2, student = (out / stage for stage in STAGE_FOLDERS)
    labels = str(_given([*shared, *teacher_configs], more, _SHOTS)) != "0"

    def fit(
        title: str,
        stage: Path,
        configs: Sequence[str],
        result: str,
        *own: str,
        last: Sequence[str] = (),
    ) -> _Step:
        files = (f"--config={file}" for file in (*shared, *configs))
        return _Step(title, ("fit", *files, f"--out={stage}", *own, *more, *last), stage / result)

    def test(title: str, stage: Path) -> _Step:
        return _Step(title, ("test", f"--config={stage / CONFIG_FILE}"), stage / RESULTS_FILE)

    def zero_shot(title: str, stage: Path) -> _Step:
        # the teacher's config without prompts is the zero-shot CLIP, here with the stage's own CLIP
        folder = out / "zero_shot" / stage.name
        args = ("test", f"--config={teacher / CONFIG_FILE}", *_NO_PROMPTS, f"--out={folder}")
        return _Step(title, args, folder / RESULTS_FILE, clip_of=stage)

    def tune(name: str, stage: Path, configs: Sequence[str]) -> _Step:
        tuning = f"tune the {name}" if labels else f"no labels, the {name} is the original CLIP"
        # after the options for both stages, such as the student's number of epochs
        last = () if labels else _ZERO_SHOT
        return fit(
            f"stage 1: {tuning}, freeze class vectors",
            stage,
            configs,
            CLASS_VECTORS_FILE,
            last=last,
        )

    own = [*shared, *student_configs]
    # a distance of features has no target
    refined = (
        not labels and _given(own, [], _TARGET) is None and _given(own, [], _LOSS) in (None, "kl")
    )
    refined = refined and _REFINED in plugins.plugins("targets")
    both = json.dumps([str(teacher), str(teacher2)])
    options = [f"--{_TEACHER}={both if teacher2_configs else teacher}"]
    options += [f"--{_TARGET}={_REFINED}"] if refined else []
    distil = "stage 2: distil the student, write the classifier"
    # all fits before the tests: without test images there is still a classifier
    return [
        tune("teacher", teacher, teacher_configs),
        *([tune("second teacher", teacher2, teacher2_configs)] if teacher2_configs else []),
        fit(distil, student, student_configs, CLASSIFIER_FOLDER, *options),
        test("test the teacher", teacher),
        *([test("test the second teacher", teacher2)] if teacher2_configs else []),
        test("test the student", student),
        *([zero_shot("test the teacher's original CLIP (zero-shot)", teacher)] if labels else []),
        zero_shot("test the student's original CLIP (zero-shot)", student),
    ]


def _given(files: Sequence[str], options: Sequence[str], key: str) -> Any:
    """Return a setting's value, or its class path, or None if it is in neither place.

    Options come before configs; of the configs the last that has the setting counts.
    """
    from kdpl.callbacks.run_config import flatten

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{key}", dest="value", nargs="?")
    trees = [flatten(read_config(file)) for file in files]
    value = parser.parse_known_args(options)[0].value
    known = (tree.get(key, tree.get(f"{key}.class_path")) for tree in reversed(trees))
    return next((each for each in known if each is not None), None) if value is None else value


def _doable(steps: Sequence[_Step], out: Path) -> Iterator[_Step]:
    """The steps one after another, without those that test where there are no test images."""
    tested: bool | None = None
    for step in steps:
        if step.args[0] == "test" and not step.done:
            tested = _has_test_images(out) if tested is None else tested
            if not tested:
                continue
        yield step


def _has_test_images(out: Path) -> bool:
    from kdpl.data.domain import build_data

    try:
        config = read_config(str(out / "student" / CONFIG_FILE))
        data = build_data([config["data"]], [f"--data.init_args.seed={config['seed_everything']}"])
        data.reading.of_run(out / "student")
        return bool(data.splits.test)
    except KdplError:
        # the test says what is wrong
        return True


def _do(step: _Step, title: str, console: Any, out: Path) -> None:
    from kdpl.cli.fit import run_command
    from kdpl.runtime.messages import process_rank

    if step.done:
        return
    # one process asks, as the others may have got the notice a moment later
    if process_rank() == 0 and slurm.signalled():
        raise slurm.requeue(str(out))
    console.rule(title, align="left")
    decoded, own = out / "teacher" / DECODED_FILE, step.result.parent / DECODED_FILE
    if process_rank() == 0 and decoded.is_file() and not own.exists():
        # the images are the same, and need not be decoded once more
        own.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(decoded, own)
    args = list(step.args)
    if step.clip_of is not None:
        args.append(f"--model.init_args.clip={json.dumps(step.clip)}")
    run_command(args)
    # a trainer and its model refer to each other; the next step needs the GPU's memory
    gc.collect()


def _require_own_folder(out: Path) -> None:
    """Refuse a file, or a folder that contains anything other than a run."""
    if out.exists() and not out.is_dir():
        raise ConfigError(
            f"--out {out} is a file, expected a folder or a new name: choose another --out"
        )
    # a stage may exist already, imported for example
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    foreign = [name for name in names if not name.startswith(".") and name not in STAGE_FOLDERS]
    if foreign and not (out / RUN_FILE).is_file():
        raise ConfigError(
            f"--out {out} contains something other than a run ({visible(min(foreign))}): choose "
            "another --out or empty it"
        )
