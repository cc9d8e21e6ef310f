"""Report section on training: data, settings and learning curves."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import import_module
from typing import Any, NamedTuple

from lightning.pytorch import Trainer

from kdpl.errors import KdplError
from kdpl.metrics import ACCURACY_TITLES, FIDELITY, TRAIN_LOSS, UNSEEN, val_key
from kdpl.report.charts import Point, line_chart
from kdpl.report.run_folder import Run
from kdpl.runtime.origin import flatten
from kdpl.tasks import MULTI_CLASS

# kdpl's command line sets other defaults for these
_LEFT_OUT = ("trainer.logger", "trainer.use_distributed_sampler", "trainer.enable_model_summary")

_NOT_MEASURED = "Not everything was measured: a loss needs epochs, an accuracy a validation split."


def training(run: Run) -> dict[str, Any]:
    """Collect data, CLIPs, and the settings of each stage that differ from the defaults."""
    data, student = run.main.settings("data"), run.stages.get("student")
    target = student and student.settings("model").get("target")
    # the dataset may be gone
    try:
        sizes, gap = _split_sizes(run), None
    except (KdplError, OSError) as error:
        sizes, gap = None, str(error)
    stages = [
        {
            "name": name,
            "clip": stage.settings("model").get("clip"),
            "epochs": (stage.config.get("trainer") or {}).get("max_epochs"),
            "seed": stage.config["seed_everything"],
            "settings": differing_settings(stage.config),
        }
        for name, stage in run.stages.items()
    ]
    return {
        "data": data,
        "stages": stages,
        "sizes": sizes,
        "sizes_gap": gap,
        "labels_for": _labels_for(target),
        "refined": is_refined(target),
        "fidelity": _fidelity(run),
        "transductive": student is not None and data.get("protocol") == "base_to_novel",
        "chosen_on_test": student is not None
        and "BestOnBaseTest" in str(student.config.get("trainer")),
    }


def is_refined(target: Any) -> bool:
    """Return whether a student's setting ``target`` is ``refined``."""
    return _name_of(target).endswith(("refined", "Refined"))


def _name_of(target: Any) -> str:
    return str(target.get("class_path") if isinstance(target, dict) else target)


def _labels_for(target: Any) -> str:
    """Name what used the labels, apart from validation."""
    if is_refined(target):
        return "the teacher and its refined targets"
    if _name_of(target).endswith(("local_views", "LocalViews")):
        return "the teacher and its targets of local views"
    return "the teacher only"


def _fidelity(run: Run) -> dict[str, Any] | None:
    """Read the student's fidelity in its last epoch; None if it was not measured."""
    try:
        curves = {} if run.student is None else run.student.curves
        (_, share), (_, images) = curves[FIDELITY][-1], curves[UNSEEN][-1]
    except (KdplError, KeyError):
        return None
    several = run.task != MULTI_CLASS.name
    # above the limit, better targets help more than a better student; with several labels, a
    # student that misses a tenth of its target's labels, and adds as many, has 0.82
    follows = share >= (0.8 if several else 0.9)
    return {"share": share, "images": int(images), "several": several, "follows": follows}


def _split_sizes(run: Run) -> dict[str, int]:
    splits = run.data.splits
    return {
        "classes": len(splits.class_names),
        "unlabelled": len(splits.pool),
        "validation": len(splits.val),
        "test": len(splits.test),
        "held_out": splits.held_out,
    }


class Setting(NamedTuple):
    """A setting as on the command line, its value, and its default; None if it is required."""

    name: str
    value: str
    default: str | None


def differing_settings(config: Mapping[str, Any]) -> list[Setting]:
    """List the settings in a fit's complete config that differ from the defaults."""
    values = flatten(config.get("trainer") or {}, "trainer")
    defaults = flatten(_defaults(Trainer), "trainer")
    for section in ("data", "model"):
        settings, prefix = config[section], f"{section}.init_args"
        values = flatten(settings["init_args"], prefix) | values
        defaults |= flatten(_defaults_of(str(settings.get("class_path"))), prefix)
    return [
        Setting(name, _text(value), _text(defaults[name]) if name in defaults else None)
        for name, value in values.items()
        if not name.startswith(_LEFT_OUT)
        and (value != defaults[name] if name in defaults else value is not None)
    ]


def _defaults_of(class_path: str) -> dict[str, Any]:
    module, _, name = class_path.rpartition(".")
    try:
        return _defaults(getattr(import_module(module), name))
    except (ImportError, AttributeError, ValueError):
        return {}  # all settings are listed


def _defaults(kind: Any) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters.values()
    values = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    # as a config writes them
    return {
        n: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v
        for n, v in values.items()
    }


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def learning_curves(run: Run) -> list[dict[str, Any]]:
    """Lay out the charts of each stage; ``gap`` says what was not measured."""
    stages = []
    for name, stage in run.stages.items():
        charts, gap = [], None
        try:
            for title, lines in panels(stage.curves).items():
                if chart := line_chart(title, lines):
                    charts.append(chart)
                else:
                    gap = _NOT_MEASURED
        except KdplError as error:
            gap = str(error)
        stages.append({"name": name, "charts": charts, "gap": gap})
    return stages


def panels(curves: Mapping[str, Sequence[Point]]) -> dict[str, dict[str, list[Point]]]:
    """Group curves into loss and accuracies (or mean average precisions), over epochs from 1."""
    epoch_of = dict(curves.get("epoch", []))

    def line(key: str, scale: float = 1) -> list[Point]:
        # a test logs too, at steps without an epoch
        return [
            (epoch_of[step] + 1, scale * value)
            for step, value in curves.get(key, [])
            if step in epoch_of
        ]

    loss, accuracy, heading = {"loss": line(TRAIN_LOSS)}, "acc", "validation accuracy, %"
    if val_key("map") in curves:
        accuracy, heading = "map", "validation mAP, %"
    keys = {title: val_key(key.replace("acc", accuracy)) for key, title in ACCURACY_TITLES.items()}
    return {
        "training loss": loss,
        heading: {title: line(key, 100) for title, key in keys.items()},
    }
