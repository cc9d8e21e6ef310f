"""What ``run`` does before its first step: parse both stages; with PATH, survey and choose."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdpl.cli.init import CONFIG, TABLE, pool_size, print_left_out, survey
from kdpl.cli.run_defaults import Choice, Options, choose, print_choice
from kdpl.data.identity import CHANGED, digest_of, files_of
from kdpl.data.inspection import Inspected
from kdpl.data.options import ClassOptions, ReadingOptions
from kdpl.data.paths import find_images
from kdpl.data.readers.table import Table
from kdpl.data.reading import Reading
from kdpl.errors import ArtifactError, ConfigError, reason
from kdpl.runtime.advice import absolute
from kdpl.runtime.configs import read_config, shipped_configs
from kdpl.runtime.faults import mark
from kdpl.runtime.files import read_json, write_json
from kdpl.runtime.messages import inform, process_rank
from kdpl.runtime.origin import digest
from kdpl.runtime.run_folder import CHOICE_FILE, DATA_FOLDER, DECODED_FILE, FEATURES_FOLDER

if TYPE_CHECKING:
    from kdpl.cli.stage_cli import KdplCLI

_ARGUMENTS = "model.init_args"
_DEPTHS = ("model.init_args.vision_prompts.depth", "model.init_args.text_prompts.depth")


def complete(path: str, out: Path, options: Options, classes: ClassOptions) -> Options:
    """Survey images, choose the missing options, and print them; a run that resumes reads both."""
    folder, source, first = out / DATA_FOLDER, absolute(path), process_rank() == 0
    try:
        choice = Choice(**read_json(folder / CHOICE_FILE))
    except FileNotFoundError:
        choice = None
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"{folder / CHOICE_FILE} cannot be read ({reason(error)}): remove {folder}"
        ) from error
    if choice is None and not first:
        raise ConfigError(
            f"one process surveys {path}: call init with the same options, and give its config as "
            "--config"
        )
    if choice is None:
        choice = survey_and_choose(path, out, options, classes)
        write_json(folder / CHOICE_FILE, asdict(choice))
    elif choice.path != str(source):
        raise ConfigError(f"{out} is a run of {choice.path}, not of {path}: choose another --out")
    else:
        before, now = dict(choice.made_from or {}), _made_from(source, out, classes)
        # fits compare the contents of files that have only another time
        was, newest = before.pop(CHANGED, None), now.pop(CHANGED, None)
        if before != now:
            raise ConfigError(
                f"{path} has other images, --class-names or --label-separator than when {out} was "
                f"begun ({CHANGED} is {newest}): give the same, choose another --out, or remove it"
            )
        if was != newest:
            inform(f"files of {path} were touched since {out} was begun, the last one {newest}")
        if first:
            print_left_out(folder)
    completed, reasons = choice.completed(options, str(folder / CONFIG))
    if first:
        print_choice(path, reasons)
        print(f"the same command in full:\n  {options.way_here()}{completed.in_full(out)}")
    return completed


def survey_and_choose(path: str, out: Path, options: Options, classes: ClassOptions) -> Choice:
    """Survey images and choose; settings that no stage takes are refused before."""
    source = absolute(path)
    made_from = _made_from(source, out, classes)
    choice = choose(classes.label_separator is not None)
    # the images may take minutes; their config is not written yet
    table = choice.completed(options, str(shipped_configs()["data/table"]))[0]
    parse_stages(out, replace(table, settings=[*table.settings, f"--data.root={source}"]))
    images = survey(str(source), out / DATA_FOLDER, classes)
    # the fits need not look at the same images again; an earlier survey's may have changed
    folder, separator = absolute(out / DATA_FOLDER), classes.label_separator
    (folder / DECODED_FILE).unlink(missing_ok=True)
    reader = Table(str(folder / TABLE), class_names=classes.names, label_separator=separator)
    reading = Reading(reader, ReadingOptions())
    reading.of_run(folder)
    inspected = {os.path.normpath(image.path): Inspected(digest=image.digest) for image in images}
    reading.scan(trains=True, inspected=inspected)
    return replace(choice.for_pool(pool_size(images)), path=str(source), made_from=made_from)


def _made_from(source: Path, out: Path, classes: ClassOptions) -> dict[str, Any]:
    """Return what is surveyed: the images of a table, or a folder's images not in ``out``."""
    files = [absolute(classes.names)] if classes.names is not None else []
    out, mark = absolute(out), classes.label_separator
    if source.is_file():
        files.append(source)
        rows = Table(str(source), class_names=classes.names, label_separator=mark).rows()
        images = [row.source for row in rows]
    elif source.is_dir():
        images = [path for path in find_images(source) if not Path(path).is_relative_to(out)]
    else:
        raise ConfigError(f"{source} does not exist: give the folder or table of your images")
    read = {"separator": mark, "class names and table": digest(file.read_bytes() for file in files)}
    return {**read, "images": digest_of(images), **files_of(images)}


def is_tuned(teacher: "KdplCLI") -> bool:
    """Return whether a teacher's fit tunes prompts."""
    return any(teacher.config.get(depth) != 0 for depth in _DEPTHS)


def untuned(teacher: "KdplCLI") -> "KdplCLI":
    """Return a teacher's fit as the original CLIP: without prompts, epochs and labels."""
    from kdpl.prompts.text import CONTEXT

    config = read_config(str(shipped_configs()["teacher/zero_shot"]))
    if teacher.config.get("model.init_args.context", "") is None:
        # words in place of a context that starts from noise
        config["model"]["init_args"]["context"] = CONTEXT
    return teacher.derive(config)


def parse_stages(out: Path, run: Options) -> "dict[str, KdplCLI]":
    """Return the parsed stages of a run, by the names of their folders."""
    from kdpl.cli.fit import parse_stage
    from kdpl.tasks import MULTI_CLASS

    configs = run.files()

    def parse(name: str, **model: Any) -> "KdplCLI":
        files = [f"--config={file}" for file in (*configs["shared"], *configs[name])]
        options = [*files, f"--seed_everything={run.seed}", *run.settings]
        values = {"out": str(out / name)} | ({"model": {"init_args": model}} if model else {})
        try:
            return parse_stage("fit", options, values)
        except ConfigError as error:
            mark(error, f"in the settings of the {name}")
            raise

    teacher = parse("teacher")
    without_labels = teacher.config.get("data.init_args.shots") == 0
    if without_labels or run.has_original_clip:
        # options for both stages, such as epochs, are the student's
        teacher = untuned(teacher)
    student = parse("student", teacher=str(out / "teacher"))
    data, names_set = student.data(), run.names_set()
    from_user = data.reading.reader.from_user
    if from_user and is_tuned(teacher):
        teacher = _with_stored_features(teacher, out, run.names_set("teacher"), from_user)
    student = _with_stored_features(student, out, names_set, from_user)
    if (
        without_labels
        # parsed settings do not tell a default from the same value in a config
        and not any(name.startswith("model.target") for name in names_set)
        # a difference of logits has no refined target, and several labels are not refined
        and student.config.get("model.init_args.loss.kind", "kl") == "kl"
        and data.task == MULTI_CLASS.name
    ):
        student = student.derive({"model": {"init_args": {"target": "refined"}}})
    return {"teacher": teacher, "student": student}


def _with_stored_features(
    stage: "KdplCLI", out: Path, names_set: Sequence[str], from_user: bool
) -> "KdplCLI":
    """Return a stage that stores features beside the run, and encodes them as fast as it can."""
    defaults: dict[str, Any] = {}
    if stage.config.get(f"{_ARGUMENTS}.features_folder", "") is None:
        # for estimates and runs beside this one
        defaults["features_folder"] = str(out.absolute().parent / FEATURES_FOLDER)
    # published results do not depend on what is installed
    for name in ("engine", "stored_views") if from_user else ():
        if f"{_ARGUMENTS}.{name}" in stage.config and f"model.{name}" not in names_set:
            defaults[name] = "auto"
    return stage.derive({"model": {"init_args": defaults}}) if defaults else stage
