"""Logger for metrics.csv in the run's folder, and helpers for all loggers of a run."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from kdpl.runtime.configs import as_list
from kdpl.runtime.files import append, cut_to_whole_lines, read_rows, write_rows
from kdpl.runtime.run_folder import METRICS_FILE


class MetricsCSV(Logger):
    """Logger that appends metrics to ``metrics.csv``, also when a run is resumed or tested later.

    Lightning's CSVLogger overwrites the file each time. Rows of one step belong together; of two
    values in a column at one step, the later one counts.

    Args:
        save_dir: Folder of the file; a relative path is inside the run's folder.
    """

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__()
        self._save_dir = save_dir
        self._begun = False

    @property
    def name(self) -> str:
        """Kind of logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty: there is one file per run."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the file."""
        return self._save_dir

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's folder has the config as a file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Append a row, with new columns for new metrics."""
        path = Path(self._save_dir) / METRICS_FILE
        row: dict[str, Any] = {"step": step, **{k: float(value) for k, value in metrics.items()}}
        if "epoch" in row:
            row["epoch"] = int(row["epoch"])
        columns = list[str]()
        if path.is_file():
            if not self._begun:
                cut_to_whole_lines(path)
            # a test of the same run may have added columns since the last row
            with path.open(newline="", encoding="utf-8") as file:
                columns = next(csv.reader(file), [])
        self._begun = True
        if row.keys() <= set(columns):
            line = io.StringIO(newline="")
            csv.DictWriter(line, columns).writerow(row)
            append(path, line.getvalue())
        else:
            rows = [*(read_rows(path) if columns else []), row]
            columns += [name for name in row if name not in columns]
            write_rows(path, [columns, *([row.get(key, "") for key in columns] for row in rows)])


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Read ``metrics.csv`` as curves: steps, sorted, each with its last value, by metric."""
    curves: dict[str, dict[int, float]] = {}
    for row in read_rows(path):
        for key, value in row.items():
            if key != "step" and value and row["step"]:
                curves.setdefault(key, {})[int(row["step"])] = float(value)
    return {key: sorted(curve.items()) for key, curve in curves.items()}


def place_loggers(loggers: Any, folder: Path) -> None:
    """Put the relative folders of the trainer's logger settings into the run's folder."""
    for logger in as_list(loggers):
        settings = logger.get("init_args") if isinstance(logger, Namespace) else None
        if settings is not None and settings.get("save_dir") is not None:
            # an absolute save_dir stays as it is
            settings.save_dir = str(folder / settings.save_dir)


def begin_logging(loggers: Iterable[Logger]) -> None:
    """Begin the runs in W&B, which may ask for a key: rather now than once all is loaded."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _ = logger.experiment


def finish_logging(loggers: Iterable[Logger], exit_code: int | None = None) -> None:
    """Finish the runs in W&B; the next command in this process starts a new run."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code)
