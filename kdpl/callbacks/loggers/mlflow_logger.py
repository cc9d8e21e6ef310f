"""One MLflow run for each run's folder, in MLflow's default store."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from kdpl.errors import ConfigError, reason
from kdpl.runtime.files import write_text
from kdpl.runtime.messages import warn
from kdpl.runtime.optional import optional

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ID_FILE = "mlflow_id"


class RunMLFlowLogger(MLFlowLogger):
    """MLFlowLogger that continues the same MLflow run when a fit is resumed or tested.

    A store that fails at the start is an error; a store that fails later ends the log, not the
    training.

    Args:
        save_dir: The run's folder, for the id of the MLflow run; a relative path is inside the
            run's folder.
        experiment_name: By default MLFLOW_EXPERIMENT_NAME, or kdpl.
        run_name: By default the last two parts of the folder's path.
        tracking_uri: By default MLFLOW_TRACKING_URI, or MLflow's default, ``mlflow.db`` in the
            current folder.
    """

    def __init__(
        self,
        save_dir: str = ".",
        experiment_name: str | None = None,
        run_name: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        self._id_file = Path(save_dir) / ID_FILE
        self._begun = self._lost = self._has_config = False
        # before MLflow is imported, or it would report usage to its developers
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow = optional("mlflow", "the logger of MLflow", "mlflow")
        self._store = tracking_uri or mlflow.get_tracking_uri()

        # continue the MLflow run of the folder, if it has one
        file = self._id_file
        run_id = file.read_text(encoding="utf-8").strip() if file.is_file() else None
        try:
            super().__init__(
                experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME", "kdpl"),
                run_name or "/".join(Path(save_dir).parts[-2:]),
                tracking_uri=self._store,
                run_id=run_id,
            )
        except mlflow.MlflowException as error:
            raise self._refused(error) from error

    @property
    @rank_zero_experiment
    def experiment(self) -> "MlflowClient":
        """MLflow client; creates or finds the run on first access."""
        from mlflow import MlflowException

        try:
            client: MlflowClient = super().experiment
            # on first access, keep the id and look for the config of an earlier fit
            if not self._begun:
                self._begun = True  # run_id reads this property again
                run_id = str(self.run_id)
                write_text(self._id_file, run_id)
                client.update_run(run_id, "RUNNING")
                self._has_config = bool(client.get_run(run_id).data.params)
        except MlflowException as error:
            raise self._refused(error) from error
        return client

    def _refused(self, error: Exception) -> ConfigError:
        # a store's address may hold a password
        store, why = (re.sub(r"//[^/@\s]*@", "//…@", text) for text in (self._store, reason(error)))
        return ConfigError(
            f"MLflow cannot log to {store} ({why}): set MLFLOW_TRACKING_URI to the right store, or "
            f"remove {self._id_file} if there is one, to begin another MLflow run"
        )

    def _unless_lost(self, function: Callable[..., None], *args: Any) -> None:
        if self._lost:
            return
        _ = self.experiment
        try:
            function(*args)
        except Exception as error:  # from the network, the disk or the database
            self._lost = True
            warn(f"MLflow stops logging ({reason(error)}); metrics.csv is complete")

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log the config once: MLflow cannot change it, but a resumed run may change devices."""
        _ = self.experiment
        if not self._has_config:
            self._unless_lost(super().log_hyperparams, params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Log metrics of a step."""
        self._unless_lost(super().log_metrics, metrics, step)

    @rank_zero_only
    def log_picture(self, name: str, path: Path) -> None:
        """Log a PNG file as an artifact of the run, in the folder part of its name."""
        folder = name.rpartition("/")[0]
        self._unless_lost(self.experiment.log_artifact, self.run_id, str(path), folder)

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Set the status of the run, if it has begun."""
        if self._begun:
            self._unless_lost(super().finalize, status)
