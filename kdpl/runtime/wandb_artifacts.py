"""What stages hand over, as artifacts in W&B: teacher → class vectors → classifier, each run with what it used.

Names come from the fingerprint of the tuned teacher, so that a student's run names its input without asking the server
or the run that made it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn

if TYPE_CHECKING:
    from wandb import Artifact

TEACHER = "teacher"
CLASS_VECTORS = "class-vectors"
CLASSIFIER = "classifier"

_SHOWN = 16


def artifact_name(kind: str, fingerprint: str) -> str:
    """Give the name of an artifact of a kind, by a fingerprint of what it is of."""
    return f"{kind}-{fingerprint[:_SHOWN]}"


def accuracies(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Give the accuracies on validation images among a trainer's metrics."""
    return {name: float(value) for name, value in metrics.items() if name.startswith("val/")}


def log_output(loggers: Iterable[Logger], kind: str, name: str | None, path: Path, metadata: Mapping[str, Any]) -> None:
    """Hand a file or folder over as an artifact that the run made, to W&B alone; call on one process.

    Args:
        loggers: The trainer's loggers.
        kind: Type of the artifact.
        name: Its name; None: of the run's id.
        path: The file or folder, which must not change later: it is read where it lies when it is sent.
        metadata: What to say of it.
    """
    for logger in _runs(loggers):
        run = logger.experiment
        run.log_artifact(_artifact(kind, name or f"{kind}-{run.id}", path, metadata), aliases=["latest", run.id])


def log_input(loggers: Iterable[Logger], kind: str, name: str, path: Path, metadata: Mapping[str, Any]) -> None:
    """Say in W&B which artifact the run starts from; call on one process.

    The file itself goes along. Where the project has it already, W&B knows it by its content and keeps one; where it
    was made without W&B or in another project, it is there now.

    Args:
        loggers: The trainer's loggers.
        kind: Type of the artifact.
        name: Its name.
        path: The file.
        metadata: What to say of it.
    """
    for logger in _runs(loggers):
        run = logger.experiment
        artifact = _artifact(kind, name, path, metadata)
        # also where the server cannot draw the line itself, the run says what it was made from
        run.config.update(
            {"inputs": {kind: {"artifact": name, "digest": artifact.digest, **metadata}}}, allow_val_change=True
        )
        try:
            # what use_artifact does of an artifact that is not sent yet; that one refuses to work offline, and online
            # it waits for the server without bound
            run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        except (AttributeError, TypeError) as error:
            rank_zero_warn(f"this wandb cannot note down the inputs of a run ({error}): they are in its config alone")


def _runs(loggers: Iterable[Logger]) -> Iterable[WandbLogger]:
    return (logger for logger in loggers if isinstance(logger, WandbLogger) and not logger.experiment.disabled)


def _artifact(kind: str, name: str, path: Path, metadata: Mapping[str, Any]) -> "Artifact":
    import wandb

    artifact = wandb.Artifact(name, type=kind, metadata=dict(metadata))
    # immutable: read from the run's folder, not from a copy in the home folder
    if path.is_dir():
        artifact.add_dir(str(path.resolve()), skip_cache=True, policy="immutable")
    else:
        artifact.add_file(str(path.resolve()), skip_cache=True, policy="immutable")
    return artifact
