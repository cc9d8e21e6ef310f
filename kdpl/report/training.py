"""Report section on training: data, stages and learning curves."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from kdpl.clip.loading import has_text_tower
from kdpl.errors import KdplError
from kdpl.metrics import ACC, ACCURACY_TITLES, FIDELITY, MAP, TRAIN_LOSS, UNSEEN, val_key
from kdpl.report.charts import Point, line_chart
from kdpl.report.intervals import Accuracy
from kdpl.report.run_folder import Run, Stage, attempt
from kdpl.runtime.predictions import read_estimate
from kdpl.tasks import MULTI_CLASS

_NOT_MEASURED = "Without training there is no loss, and without validation images no accuracy."


def training(run: Run) -> dict[str, Any]:
    """Collect data and CLIPs, and the epochs and seed of each stage."""
    data, student = run.main.settings("data"), run.stages.get("student")
    target = student and student.settings("model").get("target")
    # the dataset may be gone
    splits, gap = attempt(lambda: run.data.splits)
    stages = [
        {
            "name": name,
            "clip": stage.settings("model").get("clip"),
            "epochs": (stage.config.get("trainer") or {}).get("max_epochs"),
            "seed": stage.config["seed_everything"],
            "trained": _trained(run, stage) if name == "student" else "",
        }
        for name, stage in run.stages.items()
    ]
    return {
        "data": data,
        "stages": stages,
        "splits": splits,
        "splits_gap": gap,
        "target": name_of(target),
        "estimated": _estimated(run),
        "fidelity": _fidelity(run),
        "transductive": student is not None and data.get("protocol") == "base_to_novel",
        "chosen_on_test": student is not None
        and "BestOnBaseTest" in str(student.config.get("trainer")),
    }


def _estimated(run: Run) -> Accuracy | None:
    expected = read_estimate(run.folder)
    return None if expected is None else Accuracy(expected[0], expected[1:])


def name_of(target: Any) -> str:
    """Return the name of a student's setting ``target``, such as ``refined``, or of its class."""
    path = target.get("class_path") if isinstance(target, dict) else target
    return str(path).rpartition(".")[2]


def _trained(run: Run, student: Stage) -> str:
    model = student.settings("model")
    depth = (model.get("vision_prompts") or {}).get("depth")
    whole = model.get("fine_tune")
    if whole is None:
        # the default is to train networks that are not of a CLIP
        whole = not has_text_tower(str((model.get("clip") or {}).get("model")))
    parts = ["whole image tower"] if whole else []
    parts += [f"prompts in {depth} layers"] if depth else []
    rate = (model.get("optim") or {}).get("lr")
    chosen = ", as the search chose" if (run.folder / "search").is_dir() else ""
    return f"{', '.join([*parts, 'projector'])}, at learning rate {rate}{chosen}"


def _fidelity(run: Run) -> dict[str, Any] | None:
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


def learning_curves(run: Run) -> list[dict[str, Any]]:
    """Lay out the charts of each stage; ``gap`` says what was not measured."""
    stages = []
    for name, stage in run.stages.items():
        curves, gap = attempt(partial(getattr, stage, "curves"))
        charts = [line_chart(title, lines) for title, lines in panels(curves or {}).items()]
        if None in charts:
            gap = gap or _NOT_MEASURED
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

    loss, accuracy, heading = {"loss": line(TRAIN_LOSS)}, ACC, "validation accuracy, %"
    if val_key(MAP) in curves:
        accuracy, heading = MAP, "validation mAP, %"
    keys = {title: val_key(key.replace(ACC, accuracy)) for key, title in ACCURACY_TITLES.items()}
    return {"training loss": loss, heading: {title: line(key, 100) for title, key in keys.items()}}
