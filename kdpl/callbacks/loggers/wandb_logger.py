"""Weights & Biases logger that cannot fail a training: offline if the server does not answer."""

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger

from kdpl.errors import ConfigError, reason
from kdpl.runtime.files import write_text
from kdpl.runtime.messages import process_rank, warn

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

ID_FILE = "wandb_id"

_DEFAULT_PROJECT = "kdpl"
_SETTINGS = {
    "WANDB_INIT_TIMEOUT": "20",  # seconds
    "WANDB_FINISH_TIMEOUT": "300",  # seconds
    # the W&B process dies with this one and loses what it has not written
    "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "1",  # seconds
}


class RunWandbLogger(WandbLogger):
    """WandbLogger that falls back to offline logging.

    If W&B is unavailable, the run is logged offline after a warning. All fits and tests of a run's
    folder have the same id and name.

    Args:
        name: By default WANDB_NAME, or the last two parts of the folder's path.
        save_dir: The run's folder; a relative path is inside of it.
        id: By default the id in the run's folder; for a new run WANDB_RUN_ID, or a random id.
        project: By default WANDB_PROJECT, or kdpl.
        settings: Settings of Lightning's logger.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str = ".",
        id: str | None = None,
        project: str | None = None,
        **settings: Any,
    ) -> None:
        folder = Path(save_dir)
        # W&B writes elsewhere if the folder does not exist
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(
            name=name or os.environ.get("WANDB_NAME", "/".join(folder.parts[-2:])),
            save_dir=save_dir,
            id=id or _run_id(folder),
            project=project or os.environ.get("WANDB_PROJECT", _DEFAULT_PROJECT),
            **settings,
        )

    @property
    @rank_zero_experiment
    def experiment(self) -> "Run":
        """The W&B run, offline if W&B is unavailable."""
        import wandb

        if wandb.run is not None:
            run: Run = super().experiment
            return run
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            run = super().experiment
        except Exception as error:  # wandb's errors have no common base
            # otherwise the half-started run would keep the id
            wandb.teardown()
            if os.environ.get("WANDB_MODE") == "offline":
                raise ConfigError(
                    f"W&B refuses to begin a run ({reason(error)}): correct the logger's settings, "
                    "or leave it out"
                ) from error
            os.environ["WANDB_MODE"] = "offline"
            warn(
                f"W&B cannot be used now ({reason(error)}): the run is logged offline, send it "
                f"later with wandb sync {self.save_dir}/wandb/offline-run-*"
            )
            run = self.experiment
        return run


def _run_id(folder: Path) -> str:
    """Return the W&B id of a run's fits and tests: the kept id, WANDB_RUN_ID, or a random id."""
    file = folder / ID_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    new = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    if process_rank() == 0:
        write_text(file, new)
    return new
