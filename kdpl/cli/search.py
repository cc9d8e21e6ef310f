"""``run --search``: choose what of a student is trained, without labels, by its fidelity."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from kdpl.errors import ConfigError, TrainingError
from kdpl.runtime.configs import as_list
from kdpl.runtime.files import write_text
from kdpl.runtime.markdown import markdown_rows
from kdpl.runtime.run_folder import METRICS_FILE
from kdpl.runtime.steps import take_decoded

if TYPE_CHECKING:
    from kdpl.cli.stage_cli import KdplCLI

CHOSEN_FILE = "best.yaml"
_RATES = (1e-4, 3e-4, 1e-3)
_FIDELITY = "kdpl.targets.fidelity.Fidelity"


def candidates_of(
    student: "KdplCLI", out: Path, rates: Sequence[float] = ()
) -> "dict[str, KdplCLI]":
    """Return short fits by name: the student as configured, and its whole tower at each rate."""
    trainer = student.config.trainer
    if (trainer.max_epochs or 0) < 1:
        raise ConfigError("the number of epochs is unknown: set trainer.max_epochs")
    # four quarters cost one fit, and the first epoch is a warm-up
    epochs = max(2, -(-trainer.max_epochs // 4))
    others = [each.as_dict() for each in as_list(trainer.callbacks) if each.class_path != _FIDELITY]
    shorter = {
        "max_epochs": epochs,
        "check_val_every_n_epoch": epochs,
        "callbacks": [*others, {"class_path": _FIDELITY}],
        "logger": {"class_path": "kdpl.runtime.loggers.MetricsCSV"},
    }
    models: dict[str, dict[str, object]] = {"configured": {}}
    for rate in rates or _RATES:
        optim = {"optimizer": "adamw", "lr": float(rate)}
        tower = {"fine_tune": True, "vision_prompts": {"depth": 0}, "optim": optim}
        models[f"tower_{rate:g}"] = tower
    return {
        name: student.derive(
            {"out": str(out / name), "trainer": shorter, "model": {"init_args": model}}
        )
        for name, model in models.items()
    }


def compare(
    student: "KdplCLI", candidates: "Mapping[str, KdplCLI]", out: Path, decoded: Path
) -> "KdplCLI":
    """Fit the candidates, and return the student's fit with the best one's settings.

    They are written into ``out``. ``decoded`` notes which images can be decoded.
    """
    from kdpl.cli.fit import run_stage
    from kdpl.metrics import FIDELITY, TARGET_KL
    from kdpl.runtime.loggers import read_metrics
    from kdpl.runtime.messages import inform, process_rank

    # fit each candidate, also one that is done: it compares its settings again
    measured = dict[str, tuple[float, float]]()
    for number, (name, candidate) in enumerate(candidates.items(), start=1):
        inform(f"candidate {number} of {len(candidates)}: {name}")
        take_decoded(decoded, candidate.folder)
        try:
            run_stage(candidate)
        except TrainingError as error:
            if name == "configured":
                raise
            inform(f"{name} is left out: {error}")
            continue
        curves = read_metrics(candidate.folder / METRICS_FILE)
        measured[name] = curves[FIDELITY][-1][1], -curves[TARGET_KL][-1][1]

    best = best_of(measured)
    settings = candidates[best].config.model.init_args.as_dict()
    chosen = {name: settings[name] for name in ("fine_tune", "vision_prompts", "optim")}
    best_settings = {"model": {"init_args": chosen}}
    if process_rank() == 0:
        write_text(out / CHOSEN_FILE, yaml.safe_dump(best_settings, sort_keys=False))
        rows = [[name, f"{100 * at[0]:.1f}", f"{-at[1]:.3f}"] for name, at in measured.items()]
        head = ["candidate", "agreement on unseen images, %", "KL, nats"]
        print(*markdown_rows([head, *rows], 2), f"{best} is chosen", sep="\n")
    return student.derive(best_settings)


def best_of(measured: Mapping[str, tuple[float, float]]) -> str:
    """Return which candidate agrees most with its target; each has agreement and negative KL.

    Candidates further from the target than ``configured`` are left out: an image or two more of a
    hundred say little alone.
    """
    close = [name for name, (_, near) in measured.items() if near >= measured["configured"][1]]
    return max(close or measured, key=lambda name: measured[name])
