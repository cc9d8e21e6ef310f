"""``python -m kdpl run``: both stages and their tests in order."""

import argparse
import gc
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal, cast

from jsonargparse.typing import NonNegativeInt

from kdpl.errors import ConfigError, KdplError, visible
from kdpl.runtime import plugins, slurm
from kdpl.runtime.configs import find_config, read_config
from kdpl.runtime.faults import mark
from kdpl.runtime.files import copy, write_text
from kdpl.runtime.origin import flatten
from kdpl.runtime.run_folder import (
    CLASS_VECTORS_FILE,
    CLASSIFIER_FOLDER,
    CONFIG_FILE,
    DECODED_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    RUN_FILE,
    STAGE_FOLDERS,
)

_NO_PROMPTS = {
    "method": "independent",
    "vision_prompts": {"depth": 0},
    "text_prompts": {"depth": 0},
}
# the teacher of no labels, as configs/teacher/zero_shot.yaml says for fit
_ZERO_SHOT = {
    "model": {"init_args": {**_NO_PROMPTS, "averaging": None}},
    "trainer": {"max_epochs": 0, "limit_train_batches": 0},
}
_SHOTS, _MODEL, _TARGET, _LOSS = (
    "data.init_args.shots",
    "model.init_args.clip.model",
    "model.init_args.target",
    "model.init_args.loss.kind",
)
_DEPTHS = ("model.init_args.vision_prompts.depth", "model.init_args.text_prompts.depth")
_REFINED = "refined"


@dataclass(frozen=True)
class _Step:
    """A stage's fit, a test or a search; its result exists once it is done.

    It is written last, and stands for the others; ``fit`` itself asks for all that it hands over,
    see ``handed_over``. A search is done with the student's fit: until then its finished candidates
    compare their settings again.
    """

    title: str
    command: Literal["fit", "test", "search"]
    result: Path
    options: list[str]
    # settings that win over the options
    values: dict[str, Any]
    # for a zero-shot test, the folder of the stage whose CLIP is tested
    clip_of: Path | None = None
    # a config that a search writes, and that wins over the options of a fit
    found: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder that it writes into."""
        return cast(Path, self.found if self.command == "search" else self.result).parent

    def run(self, check_only: bool = False) -> None:
        """Run it, or check its settings only."""
        from kdpl.cli.fit import run_stage
        from kdpl.cli.search import search
        from kdpl.cli.stage_cli import KdplCLI, StageCheck

        if self.command == "search":
            search(out=str(self.folder), settings=self.options)
            return
        options = self.options
        if self.found is not None and self.found.exists():
            options = [*options, f"--config={self.found}"]
        values = {"out": str(self.folder), **self.values}
        if self.clip_of is not None:
            clip = read_config(str(self.clip_of / CONFIG_FILE))["model"]["init_args"]["clip"]
            values["model"] = {"init_args": {**_NO_PROMPTS, "clip": clip}}
        kind = StageCheck if check_only else KdplCLI
        run_stage(self.command, options, values, check_only, make=kind)


def run(
    *,
    config: list[str] = [],  # noqa: B006 - the parser copies it
    teacher: list[str],
    student: list[str],
    out: str,
    seed: int = 1,
    shots: NonNegativeInt | None = None,
    teacher2: list[str] = [],  # noqa: B006 - the parser copies it
    search: bool = False,
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
        search: Choose what of the student is trained before it is distilled, without labels, as the
            command search does, which costs about one more fit.
        settings: Options for both stages.
    """
    from rich.console import Console

    from kdpl.cli.run_summary import summarize
    from kdpl.runtime.lock import RunLock
    from kdpl.runtime.messages import process_rank

    configs = {
        "shared": [find_config(each) for each in config],
        "teacher": [find_config(each, "teacher") for each in teacher],
        "teacher2": [find_config(each, "teacher") for each in teacher2],
        "student": [find_config(each, "student") for each in student],
    }
    for file in itertools.chain(*configs.values()):
        read_config(file)
    folder = Path(out)
    _require_own_folder(folder)
    settings = [f"--{_SHOTS}={shots}", *settings] if shots is not None else settings
    steps = _steps(folder, configs, seed, settings, search)
    os.environ.setdefault("WANDB_RUN_GROUP", folder.name)
    # the stages are runs of their own
    os.environ.pop("WANDB_RUN_ID", None)
    first = process_rank() == 0

    def due(step: _Step) -> bool:
        # the tests come last, when the student's run says which images there are
        return not step.result.exists() and (step.command != "test" or tested())

    tested = cache(partial(_has_test_images, folder))
    unfinished = any(map(due, steps))
    with ExitStack() as at_end:
        if first and unfinished:
            at_end.callback(RunLock(folder).release)
        # the student's settings as well, before the teacher is tuned
        for step in steps:
            if step.command == "fit":
                step.run(check_only=True)
        if first and unfinished:
            about = {"configs": configs, "seed": seed, "settings": settings}
            write_text(folder / RUN_FILE, json.dumps(about, indent=2))
        console = Console(quiet=not first)
        for number, step in enumerate(steps, start=1):
            try:
                if due(step):
                    # what was tested in its folder before is something else
                    stage = step.folder.name if first and step.command == "fit" else None
                    for test in steps:
                        if test.command == "test" and test.folder.name == stage:
                            test.result.unlink(missing_ok=True)
                    _do(step, f"[bold]{number}/{len(steps)} {step.title}", console, folder)
            except (Exception, KeyboardInterrupt) as error:
                if number > 1:
                    mark(error, f"step {number - 1} of {len(steps)} is finished and kept")
                raise
        if first:
            # unless it is written already
            report = plugins.paths("commands").get("report")
            if report is not None and (unfinished or not (folder / REPORT_FILE).is_file()):
                resolve_name(report)(str(folder), trust=True)
            summarize(console, folder, nothing_done=not unfinished)
    return 0


def _steps(
    out: Path,
    configs: Mapping[str, Sequence[str]],
    seed: int,
    settings: Sequence[str],
    search: bool,
) -> list[_Step]:
    from kdpl.clip.loading import has_text_tower

    teacher, teacher2, student = (out / stage for stage in STAGE_FOLDERS)
    of_teacher, of_student = (
        [*configs["shared"], *configs[each]] for each in ("teacher", "student")
    )
    labels = str(_given(of_teacher, settings, _SHOTS)) != "0"

    def tuned(name: str) -> bool:
        files = [*configs["shared"], *configs[name]]
        return labels and any(str(_given(files, settings, depth)) != "0" for depth in _DEPTHS)

    def fit(stage: Path, title: str, result: str, values: Mapping[str, Any]) -> _Step:
        files = [f"--config={file}" for file in (*configs["shared"], *configs[stage.name])]
        options = [*files, f"--seed_everything={seed}", *settings]
        return _Step(title, "fit", stage / result, options, dict(values))

    def tune(stage: Path, name: str) -> _Step:
        tuning = f"tune the {name}" if tuned(stage.name) else f"the {name} is the original CLIP"
        title = f"stage 1: {tuning}, freeze class vectors"
        return fit(stage, title, CLASS_VECTORS_FILE, {} if labels else _ZERO_SHOT)

    def test(stage: Path, name: str) -> _Step:
        options = [f"--config={stage / CONFIG_FILE}"]
        return _Step(f"test the {name}", "test", stage / RESULTS_FILE, options, {})

    def zero_shot(stage: Path) -> _Step:
        # the teacher's config without prompts is the zero-shot CLIP, here with the stage's own CLIP
        title = f"test the {stage.name}'s original CLIP (zero-shot)"
        result = out / "zero_shot" / stage.name / RESULTS_FILE
        return _Step(
            title, "test", result, [f"--config={teacher / CONFIG_FILE}"], {}, clip_of=stage
        )

    model = str(_given(of_student, settings, _MODEL))
    two = bool(configs["teacher2"])
    learn: dict[str, Any] = {"teacher": [str(teacher), str(teacher2)] if two else str(teacher)}
    # a distance of features has no target
    has_target = _given(of_student, [], _TARGET) or _given(of_student, [], _LOSS) not in (
        None,
        "kl",
    )
    refines = not _several(of_student, settings)
    if not labels and not has_target and refines:
        learn["target"] = _REFINED
    title = "stage 2: distil the student, write the classifier"
    distil = fit(student, title, CLASSIFIER_FOLDER, {"model": {"init_args": learn}})
    searches = list[_Step]()
    if search:
        found = out / "search" / "best.yaml"
        texts = ((n, v if isinstance(v, str) else json.dumps(v)) for n, v in learn.items())
        told = [f"--model.init_args.{name}={text}" for name, text in texts]
        title = "search what of the student is trained"
        distil = replace(distil, found=found)
        options = [*distil.options, *told]
        searches = [replace(distil, title=title, command="search", options=options)]
    # all fits before the tests: without test images there is still a classifier
    return [
        tune(teacher, "teacher"),
        *([tune(teacher2, "second teacher")] if two else []),
        *searches,
        distil,
        test(teacher, "teacher"),
        *([test(teacher2, "second teacher")] if two else []),
        test(student, "student"),
        *([zero_shot(teacher)] if tuned("teacher") else []),
        # a network of timm is no CLIP before it is distilled
        *([zero_shot(student)] if has_text_tower(model) else []),
    ]


def _given(files: Sequence[str], options: Sequence[str], key: str) -> Any:
    """Return a setting's value, or its class path, or None if it is in neither place.

    Options come before configs; of the configs the last that has the setting counts.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{key}", dest="value", nargs="?")
    trees = [flatten(read_config(file)) for file in files]
    value = parser.parse_known_args(options)[0].value
    known = (tree.get(key, tree.get(f"{key}.class_path")) for tree in reversed(trees))
    return next((each for each in known if each is not None), None) if value is None else value


def _several(files: Sequence[str], options: Sequence[str]) -> bool:
    """Return whether images of a named dataset have several labels, which are not refined."""
    from kdpl.data.readers.registry import readers
    from kdpl.data.splits import Reader

    if _given(files, options, "data.init_args.classes.label_separator") is not None:
        return True
    name = str(_given(files, options, "data.init_args.dataset"))
    kind = readers().get(name)
    return isinstance(kind, type) and issubclass(kind, Reader) and kind.task != Reader.task


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
    from kdpl.runtime.messages import process_rank

    # one process asks, as the others may have got the notice a moment later
    if process_rank() == 0 and slurm.signalled():
        raise slurm.requeue(str(out))
    console.rule(title, align="left")
    decoded, copied = out / "teacher" / DECODED_FILE, step.folder / DECODED_FILE
    if process_rank() == 0 and decoded.is_file() and not copied.exists():
        # the images are the same, and need not be decoded once more
        copy(decoded, copied)
    step.run()
    # a trainer and its model refer to each other; the next step needs the GPU's memory
    gc.collect()


def _require_own_folder(out: Path) -> None:
    """Refuse a folder that contains anything other than a run."""
    # a stage may exist already, imported for example
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    foreign = [name for name in names if not name.startswith(".") and name not in STAGE_FOLDERS]
    if foreign and not (out / RUN_FILE).is_file():
        raise ConfigError(
            f"--out {out} contains something other than a run ({visible(min(foreign))}): choose "
            "another --out or empty it"
        )
