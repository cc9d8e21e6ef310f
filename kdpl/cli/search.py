"""``python -m kdpl search``: what of a student is trained, chosen by its fidelity."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import yaml
from jsonargparse.typing import PositiveFloat, PositiveInt

from kdpl.cli.arguments import require_settings
from kdpl.errors import ConfigError, TrainingError
from kdpl.runtime.configs import as_list
from kdpl.runtime.files import write_text
from kdpl.runtime.markdown import markdown_rows
from kdpl.runtime.run_folder import DECODED_FILE, METRICS_FILE
from kdpl.runtime.steps import take_decoded

if TYPE_CHECKING:
    from kdpl.cli.stage_cli import KdplCLI

_RATES = (1e-4, 3e-4, 1e-3)
CHOSEN_FILE = "best.yaml"


def search(
    *,
    out: str,
    epochs: PositiveInt | None = None,
    lr: list[PositiveFloat] = [],  # noqa: B006 - the parser copies it
    settings: list[str],
) -> int:
    """Choose what of a student is trained, by short fits that are compared without labels.

    The candidates are the student as configured, and its whole image tower at several learning
    rates. The one that agrees with its target on most unlabelled images that none of them has seen,
    and is no further from it than the student as configured, is written to best.yaml, a config to
    give after the student's. All other options are those of the student's fit: --config FILE,
    --model.init_args.teacher RUN. An interrupted search is resumed by the same command.

    Args:
        out: Folder of best.yaml and of the candidates' runs.
        epochs: Epochs of each candidate; by default a quarter of the fit's, and at least 2.
        lr: Learning rates of the tower; by default 1e-4, 3e-4 and 1e-3.
        settings: Options of the student's fit.
    """
    require_settings("search", "a student's fit", settings)
    from kdpl.cli.fit import parse_stage

    student, folder = parse_stage("fit", settings), Path(out)
    compare(student, candidates_of(student, folder, epochs, lr), folder)
    return 0


def candidates_of(
    student: "KdplCLI", out: Path, epochs: int | None = None, rates: Sequence[float] = ()
) -> "dict[str, KdplCLI]":
    """Return the candidates by name: short fits of a student, measured at their end."""
    from kdpl.student import StudentDistillation
    from kdpl.targets.fidelity import Fidelity

    student.require_stage(StudentDistillation, "student")
    trainer = student.config.trainer
    if (trainer.max_epochs or 0) < 1:
        raise ConfigError("the number of epochs is unknown: set trainer.max_epochs")
    callbacks = [callback.as_dict() for callback in as_list(trainer.callbacks)]
    if not any(resolve_name(callback["class_path"]) is Fidelity for callback in callbacks):
        callbacks.append({"class_path": "kdpl.targets.fidelity.Fidelity"})
    # four quarters cost one fit, and the first epoch is a warm-up
    epochs = int(epochs or max(2, -(-trainer.max_epochs // 4)))
    shorter = {
        "max_epochs": epochs,
        "check_val_every_n_epoch": epochs,
        "callbacks": callbacks,
        "logger": {"class_path": "kdpl.runtime.loggers.MetricsCSV"},
    }
    tower = {"fine_tune": True, "vision_prompts": {"depth": 0}}
    models: dict[str, dict[str, object]] = {"configured": {}}
    for rate in rates or _RATES:
        models[f"tower_{rate:g}"] = {**tower, "optim": {"optimizer": "adamw", "lr": float(rate)}}
    return {
        name: student.derive(
            {"out": str(out / name), "trainer": shorter, "model": {"init_args": model}}
        )
        for name, model in models.items()
    }


def compare(
    student: "KdplCLI", candidates: "Mapping[str, KdplCLI]", out: Path, decoded: Path | None = None
) -> "KdplCLI":
    """Fit the candidates of a student, and write what the best one trains into a folder.

    ``decoded`` is the file in which an earlier fit noted what images can be decoded, if any.
    Returns the student's fit with the best candidate's settings, on all processes.
    """
    from kdpl.cli.fit import run_stage
    from kdpl.metrics import FIDELITY, TARGET_KL, UNSEEN
    from kdpl.runtime.loggers import read_metrics
    from kdpl.runtime.messages import inform, process_rank

    # fit each candidate, also one that is done: it compares its settings again
    all_epochs = student.config.trainer.max_epochs
    if decoded is None or not decoded.is_file():
        decoded = out / "configured" / DECODED_FILE
    count, epochs = len(candidates), candidates["configured"].config.trainer.max_epochs
    inform(
        f"{count} candidates of {epochs} epochs each cost {count * epochs / all_epochs:.2g} times "
        f"the fit of {all_epochs} epochs: configured is the student as given, tower_R trains its "
        "whole image tower at the learning rate R"
    )
    measured = dict[str, tuple[float, float, float]]()
    for number, (name, candidate) in enumerate(candidates.items(), start=1):
        inform(f"candidate {number} of {count}: {name}")
        take_decoded(decoded, candidate.folder)
        try:
            run_stage(candidate)
        except TrainingError as error:
            if name == "configured":
                raise
            inform(f"{name} is left out: {error}")
            continue
        curves = read_metrics(candidate.folder / METRICS_FILE)
        share, kl, images = (curves[key][-1][1] for key in (FIDELITY, TARGET_KL, UNSEEN))
        measured[name] = share, -kl, images

    best = best_of(measured)
    settings = candidates[best].config.model.init_args.as_dict()
    chosen = {name: settings[name] for name in ("fine_tune", "vision_prompts", "optim")}
    best_settings = {"model": {"init_args": chosen}}
    if process_rank() == 0:
        file = out / CHOSEN_FILE
        write_text(file, yaml.safe_dump(best_settings, sort_keys=False))
        head = ["candidate", "agreement, %", "KL, nats"]
        rows = [[name, f"{100 * at[0]:.1f}", f"{-at[1]:.3f}"] for name, at in measured.items()]
        legend = (
            f"agreement: share of {measured[best][2]:.0f} unlabelled images, held out of these "
            "fits, on which a candidate predicts the class of its target; KL: divergence of its "
            f"predictions from the target\n{best} is chosen: it agrees most, of those whose KL "
            f"is not above that of configured: {file}"
        )
        print(*markdown_rows([head, *rows], 2), legend, sep="\n")
    return student.derive(best_settings)


def best_of(measured: Mapping[str, tuple[float, float, float]]) -> str:
    """Return the candidate that agrees most, of those that are no further from the target.

    Each has its agreement, the negative KL and the number of images. Further is compared with the
    student as configured, since an image or two more of a hundred say little alone; of equals, the
    closest is chosen.
    """
    _, closeness, _ = measured["configured"]
    close = [name for name, (_, near, _) in measured.items() if near >= closeness]
    return max(close or measured, key=lambda name: measured[name])
