"""The report's sections, and the page that they make; what is missing becomes a sentence in its section's place."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kdpl import __version__
from kdpl.class_vectors import ClassVectors, FrozenTeacher
from kdpl.errors import ArtifactError, KdplError, reason
from kdpl.prompts.tuned import FILE as PROMPTS_FILE
from kdpl.report.accuracies import accuracies
from kdpl.report.calibration import calibrate
from kdpl.report.charts import LineChart, line_chart
from kdpl.report.classes import (
    MATRIX_CLASSES,
    class_rows,
    confusion_matrix,
    largest_confusions,
)
from kdpl.report.cost import Encoder, device, device_name, measure
from kdpl.report.examples import find_examples
from kdpl.report.run_folder import Run, Stage
from kdpl.report.settings import differing_settings
from kdpl.runtime.class_names import shorten
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER

_TEMPLATES = Path(__file__).parent / "templates"
_VAL_KEYS = {"acc": "all", "base_acc": "base", "novel_acc": "novel", "hm": "harmonic mean"}


@dataclass(frozen=True)
class Section:
    """What a section shows, or why it shows nothing.

    Attributes:
        data: What its template takes; None if there is nothing.
        gap: The sentence in its place; None if there is something.
    """

    data: Any
    gap: str | None


def render(run: Run) -> str:
    """Write a run's report as HTML.

    Args:
        run: The run.
    """
    makers: dict[str, Callable[[Run], Any]] = {
        "training": _training,
        "accuracy": accuracies,
        "classes": _classes,
        "confusions": _confusions,
        "calibration": _calibration,
        "disagreement": find_examples,
        "curves": _curves,
        "cost": _cost,
    }
    sections = {name: _section(make, run) for name, make in makers.items()}
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"name": shorten, "percent": _percent, "points": _points, "bytes": _size, "count": _count}
    script = (_TEMPLATES / "sort.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.jinja").render(
        sections=sections,
        name=run.folder.resolve().name,
        style=(_TEMPLATES / "style.css").read_text(encoding="utf-8"),
        script=script,
        # the page runs this script and no other, whatever the names in it say
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        made=datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=f"kdpl {__version__}, torch {torch.__version__}",
    )


def _section(make: Callable[[Run], Any], run: Run) -> Section:
    try:
        return Section(make(run), None)
    except (KdplError, OSError) as error:
        return Section(None, str(error))
    except torch.OutOfMemoryError as error:
        # others may be using the GPU, and a run that is done does not fail for that
        return Section(None, f"the GPU has too little memory to spare ({reason(error)}): make the report again later")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(difference: float) -> str:
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _count(number: float) -> str:
    """Give a number with three digits and the usual letter."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {letter}"
    return f"{number:.3g}"


def _size(number: int) -> str:
    return f"{_count(number)}B" if number >= 1000 else f"{number} B"


def _training(run: Run) -> dict[str, Any]:
    """What was trained on what; the settings of each stage that are not the defaults."""
    stages = run.stages
    data = run.main.data_settings
    return {
        "data": data,
        "protocol": data.get("protocol", "all"),
        "seeds": {name: stage.config["seed_everything"] for name, stage in stages.items()},
        "clips": {name: stage.model.get("clip") for name, stage in stages.items()},
        "epochs": {name: (stage.config.get("trainer") or {}).get("max_epochs") for name, stage in stages.items()},
        "settings": {name: differing_settings(stage.config) for name, stage in stages.items()},
        "sizes": _section(_split_sizes, run),
        "chosen_on_test": "student" in stages and stages["student"].model.get("choice") == "best_on_base_test",
        "transductive": "student" in stages and data.get("protocol") == "base_to_novel",
    }


def _split_sizes(run: Run) -> dict[str, int]:
    splits = run.data.splits
    unlabeled = splits.unlabeled if splits.unlabeled is not None else splits.train
    counts = {"classes": splits.class_names, "unlabelled": unlabeled, "validation": splits.val, "test": splits.test}
    return {**{name: len(items) for name, items in counts.items()}, "held_out": splits.held_out}


def _class_names(run: Run) -> tuple[str, ...]:
    try:
        return run.vectors.class_names
    except KdplError:
        # in the order of the alphabet then
        return tuple(sorted({name for a in run.main.answers for name in (a.label, a.prediction)}))


def _classes(run: Run) -> dict[str, Any]:
    names = _class_names(run)
    if run.student is not None and run.teacher is not None:
        try:
            pairs = run.answers_side_by_side
            return {"rows": class_rows(names, [t for t, _ in pairs], [s for _, s in pairs]), "gap": None}
        except KdplError as error:
            return {"rows": class_rows(names, None, run.student.answers), "gap": str(error)}
    answers = run.main.answers
    return {"rows": class_rows(names, *((answers, None) if run.student is None else (None, answers))), "gap": None}


def _confusions(run: Run) -> dict[str, Any]:
    names, answers = _class_names(run), run.main.answers
    readable = len(names) <= MATRIX_CLASSES
    return {
        "who": "student" if run.student is not None else "teacher",
        "names": names,
        "matrix": confusion_matrix(names, answers) if readable else None,
        # without a matrix the list is all that there is
        "largest": largest_confusions(answers, 10 if readable else 40),
        "wrong": sum(a.label != a.prediction for a in answers),
    }


def _calibration(run: Run) -> Any:  # noqa: ANN401
    if run.student is None:
        raise ArtifactError("there is no student: calibration is that of a classifier")
    return calibrate(run, run.student)


def _curves(run: Run) -> list[dict[str, Any]]:
    return [{"name": name, **_stage_curves(stage)} for name, stage in run.stages.items()]


def _stage_curves(stage: Stage) -> dict[str, Any]:
    try:
        curves = stage.curves
    except KdplError as error:
        return {"charts": [], "gap": str(error)}
    epoch_of = dict(curves.get("epoch", []))

    def line(key: str, scale: float = 1) -> list[tuple[float, float]]:
        # a test leaves values too, at steps of no epoch
        return [(epoch_of[step] + 1, scale * value) for step, value in curves.get(key, []) if step in epoch_of]

    charts: list[LineChart | None] = [
        line_chart("training loss", {"loss": line("train/loss")}),
        line_chart("validation accuracy, %", {n: line(f"val/{k}", 100) for k, n in _VAL_KEYS.items()}),
    ]
    drawn = [chart for chart in charts if chart is not None]
    gap = (
        None
        if len(drawn) == len(charts)
        else "Not all was measured: a loss needs epochs, an accuracy a validation split."
    )
    return {"charts": drawn, "gap": gap}


def _cost(run: Run) -> dict[str, Any]:
    where = device()
    found = {"teacher": _section(_teacher_encoder, run), "student": _section(_student_encoder, run)}
    costs = measure({name: section.data for name, section in found.items() if section.data is not None}, where)
    both = (costs["teacher"], costs["student"]) if len(costs) == len(found) else None
    return {
        "device": device_name(where),
        "costs": costs,
        "gaps": {name: section.gap for name, section in found.items() if section.gap is not None},
        "faster": both[1].images_per_s / both[0].images_per_s if both else None,
        "smaller": both[0].parameters / both[1].parameters if both else None,
        "files": _files(run),
    }


def _teacher_encoder(run: Run) -> Encoder:
    if run.teacher is None:
        raise ArtifactError("there is no teacher: run stage 1 to its end")
    path = run.teacher.folder / CLASS_VECTORS_FILE
    vectors = ClassVectors.load(path)
    teacher = FrozenTeacher(run.teacher.folder, vectors)
    teacher.load()
    teacher.to(device())
    return Encoder(teacher.features, [teacher], vectors.preprocessing.image_size)


def _student_encoder(run: Run) -> Encoder:
    encoder = run.classifier.encoder.to(device())
    # a frozen tower is carried along, and so not among the encoder's own parameters
    return Encoder(encoder, [encoder, encoder.tower.module], run.classifier.preprocessing.image_size)


def _files(run: Run) -> dict[str, int]:
    """Bytes on disk of what the stages leave for others."""
    wanted: Mapping[str, tuple[Stage | None, str]] = {
        "the classifier, which is all that ships": (run.student, CLASSIFIER_FOLDER),
        "the teacher's prompts": (run.teacher, PROMPTS_FILE),
        "the class vectors": (run.teacher, CLASS_VECTORS_FILE),
    }
    sizes = {}
    for title, (stage, name) in wanted.items():
        path = stage.folder / name if stage is not None else None
        if path is not None and path.exists():
            sizes[title] = sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())
    return sizes
