"""Weights & Biases logger with one W&B run for each run's folder."""

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from kdpl.errors import ConfigError, reason
from kdpl.runtime.files import write_text
from kdpl.runtime.messages import process_rank

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

ID_FILE = "wandb_id"

_DEFAULT_PROJECT = "kdpl"
_SETTINGS = {
    "WANDB_FINISH_TIMEOUT": "300",  # seconds
    # the W&B process dies with this one and loses what it has not written
    "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "1",  # seconds
}


class RunWandbLogger(WandbLogger):
    """WandbLogger that gives all fits and tests of a run's folder the same id and name.

    Args:
        name: By default WANDB_NAME, or the last two parts of the folder's path.
        save_dir: The run's folder; a relative path is inside of it.
        id: By default the id in the run's folder; for a new run WANDB_RUN_ID, or a random id.
        project: By default WANDB_PROJECT, or kdpl.
        log_model: Upload checkpoints, as Lightning's logger does, and class vectors and classifier.
        settings: Further settings of Lightning's logger.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str = ".",
        id: str | None = None,
        project: str | None = None,
        log_model: Literal["all"] | bool = False,
        **settings: Any,
    ) -> None:
        for variable, value in _SETTINGS.items():
            os.environ.setdefault(variable, value)
        folder = Path(save_dir)
        # W&B writes elsewhere if the folder does not exist
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(
            name=name or os.environ.get("WANDB_NAME", "/".join(folder.parts[-2:])),
            save_dir=save_dir,
            id=id or _run_id(folder),
            project=project or os.environ.get("WANDB_PROJECT", _DEFAULT_PROJECT),
            log_model=log_model,
            **settings,
        )
        self._logs_results = bool(log_model)

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """The W&B run."""
        try:
            run: Run = super().experiment
        except Exception as error:  # wandb's errors have no common base
            raise ConfigError(
                f"W&B cannot begin a run ({reason(error)}): correct the logger's settings, leave "
                "it out, or set WANDB_MODE=offline and send the run later with wandb sync"
            ) from error
        return run

    @rank_zero_only
    def log_result(self, path: Path) -> None:
        """Log the file or folder that a fit hands over as an artifact, with ``log_model``."""
        if not self._logs_results:
            return
        import wandb

        artifact = wandb.Artifact(f"{path.stem}-{self.experiment.id}", type="model")
        add = artifact.add_dir if path.is_dir() else artifact.add_file
        add(str(path), policy=self.add_file_policy)
        self.experiment.log_artifact(artifact)


def _run_id(folder: Path) -> str:
    file = folder / ID_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    new = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    if process_rank() == 0:
        write_text(file, new)
    return new
