"""Up to which step a run's metrics are in W&B already."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdpl.runtime.files import atomic_path

FILE = "wandb_steps.json"


class LoggedSteps:
    """Keeps in a run's folder the last step of each metric that was logged.

    A fit that was cut goes on from its last checkpoint and computes again what came after it. W&B keeps every row that
    it gets, so such a row must not be sent twice.

    Args:
        folder: The run's folder.
        fitting: Whether what comes is a fit; a test is logged each time, at the step where the fit ended.
    """

    def __init__(self, folder: Path, fitting: bool) -> None:
        self._file = folder / FILE
        self._fitting = fitting
        self._last: dict[str, int] = {}
        if self._file.is_file():
            self._last = json.loads(self._file.read_text(encoding="utf-8"))

    def new(self, metrics: Mapping[str, Any], step: int) -> tuple[dict[str, Any], int]:
        """Give what of a row is to be logged, nothing if all of it was, and the step to log it at."""
        if not self._fitting:
            return dict(metrics), max(step, *self._last.values(), 0)
        fresh = {key: value for key, value in metrics.items() if key != "epoch" and step > self._last.get(key, -1)}
        if fresh and "epoch" in metrics:
            fresh["epoch"] = metrics["epoch"]
        return fresh, step

    def keep(self, metrics: Mapping[str, Any], step: int) -> None:
        """Note that a row of a fit was logged."""
        if self._fitting:
            self._last.update({key: step for key in metrics if key != "epoch"})
            with atomic_path(self._file) as temporary:
                temporary.write_text(json.dumps(self._last), encoding="utf-8")
