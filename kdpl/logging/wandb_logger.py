"""A run in Weights & Biases that cannot fail a training: offline where the server does not answer in time."""

import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger

from kdpl.errors import ConfigError, reason
from kdpl.runtime.files import write_text
from kdpl.runtime.messages import process_rank, warn

if TYPE_CHECKING:
    from wandb import Artifact
    from wandb.sdk.wandb_run import Run

ID_FILE = "wandb_id"

TEACHER, CLASS_VECTORS, CLASSIFIER = "teacher", "class-vectors", "classifier"
"""Types of the artifacts that stages hand over; each run names those that it used."""

_DEFAULT_PROJECT = "kdpl"
_SETTINGS = {
    "WANDB_INIT_TIMEOUT": "20",  # seconds
    "WANDB_FINISH_TIMEOUT": "300",  # seconds
    # W&B's own process dies with this one, and what it has not written is lost
    "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "1",  # seconds
}
_SHOWN = 16  # digits of a fingerprint


class RunWandbLogger(WandbLogger):
    """Lightning's WandbLogger, for a run that matters more than its log.

    Where W&B cannot be used, the run is logged offline, and one sentence says so.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """The run of the ``wandb`` package."""
        import wandb

        if wandb.run is not None:
            run: Run = super().experiment
            return run
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            run = super().experiment
        except Exception as error:  # wandb's errors have no common base
            # or the half-begun run would keep its id
            wandb.teardown()
            if os.environ.get("WANDB_MODE") == "offline":
                raise ConfigError(
                    f"W&B refuses to begin a run ({reason(error)}): correct the logger's settings, or leave it out"
                ) from error
            os.environ["WANDB_MODE"] = "offline"
            warn(
                f"W&B cannot be used now ({reason(error)}): the run is logged offline, send it later with wandb sync "
                f"{self.save_dir}/wandb/offline-run-*"
            )
            run = self.experiment
        return run


def point_loggers(loggers: Any, folder: Path, keep: bool) -> None:
    """Put the relative folders of loggers into the run's folder, and keep one W&B id and name for each run.

    Args:
        loggers: The trainer's logger settings: one, several or none.
        folder: The run's folder.
        keep: Save a new id, as a fit does.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not isinstance(logger, Namespace) or "init_args" not in logger:
            continue
        settings = logger.init_args
        if settings.get("save_dir") is not None:
            # an absolute save_dir stays as it is
            settings.save_dir = str(folder / settings.save_dir)
        if logger.class_path.endswith("WandbLogger"):
            # W&B would write elsewhere than into a folder that does not exist
            Path(settings.save_dir).mkdir(parents=True, exist_ok=True)
            settings.id = settings.id or _run_id(folder, keep)
            settings.project = settings.project or os.environ.get("WANDB_PROJECT", _DEFAULT_PROJECT)
            settings.name = settings.name or os.environ.get("WANDB_NAME", "/".join(folder.parts[-2:]))


def _run_id(folder: Path, keep: bool) -> str:
    """Return the id that all fits and tests of a run share in W&B; for a new run that of WANDB_RUN_ID, if given."""
    file = folder / ID_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    new = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    if keep and process_rank() == 0:
        write_text(file, new)
    return new


def finish_logging(loggers: Iterable[Logger], exit_code: int | None = None) -> None:
    """End the runs in W&B; the next command in this process has a run of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code)


def artifact_name(kind: str, fingerprint: str) -> str:
    """Return the name of an artifact: from the teacher's fingerprint, a student's run knows it without the server."""
    return f"{kind}-{fingerprint[:_SHOWN]}"


def log_output(loggers: Iterable[Logger], kind: str, name: str | None, path: Path, metadata: Mapping[str, Any]) -> None:
    """Log a file or folder as an artifact that the run made, in W&B alone; call on one process.

    Without a name, the artifact is named after the run's id. The file is read when it is sent, and must not change.
    """
    for run in _runs(loggers):
        run.log_artifact(_artifact(kind, name or f"{kind}-{run.id}", path, metadata), aliases=["latest", run.id])


def log_input(loggers: Iterable[Logger], kind: str, name: str, path: Path, metadata: Mapping[str, Any]) -> None:
    """Log in W&B which artifact the run starts from; call on one process.

    Its file is sent along unless the project has it already.
    """
    for run in _runs(loggers):
        artifact = _artifact(kind, name, path, metadata)
        # in the config as well: offline, the run itself must say it
        inputs = {kind: {"artifact": name, "digest": artifact.digest, **metadata}}
        run.config.update({"inputs": inputs}, allow_val_change=True)  # type: ignore[no-untyped-call]
        if not run.offline:
            run.use_artifact(artifact)


def _runs(loggers: Iterable[Logger]) -> Iterable["Run"]:
    runs = (logger.experiment for logger in loggers if isinstance(logger, WandbLogger))
    return (run for run in runs if not run.disabled)


def _artifact(kind: str, name: str, path: Path, metadata: Mapping[str, Any]) -> "Artifact":
    import wandb

    artifact = wandb.Artifact(name, type=kind, metadata=dict(metadata))
    # immutable: read from the run's folder, not from a copy in the home folder
    add = artifact.add_dir if path.is_dir() else artifact.add_file
    add(str(path.resolve()), skip_cache=True, policy="immutable")
    return artifact
