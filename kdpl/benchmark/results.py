"""The result of a campaign's run for the table: one ``results.json`` with its coordinates."""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from kdpl.errors import ArtifactError
from kdpl.runtime.files import atomic_path

RUN_FILE = "results.json"
_SECONDS_FILE = "seconds.json"


class Result(BaseModel):
    """A run's coordinates, as ``kdpl.benchmark.tasks.Run`` has them, and its accuracies.

    Attributes:
        metrics: Accuracies as fractions, by metric name.
        images: Number of test images.
        transductive: Unlabelled images of novel classes were seen in training.
        selected_on_test: The epoch was chosen by its accuracy on the base classes' test images.
        seconds: Wall-clock seconds by kind of command; a start that was killed is not counted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    protocol: str
    setting: str
    dataset: str
    seed: int
    row: str
    title: str
    metrics: dict[str, float]
    images: int
    transductive: bool
    selected_on_test: bool
    seconds: dict[str, float]

    def save(self, folder: Path) -> None:
        """Write into a run's folder, atomically."""
        _write(folder / RUN_FILE, self.model_dump_json(indent=2))


def read_all(out: Path) -> Iterator[Result]:
    """Read the results of all finished runs below a campaign's folder.

    Raises:
        ArtifactError: A file is not the result of a campaign's run.
    """
    for file in sorted(out.glob(f"*/**/{RUN_FILE}")):
        try:
            yield Result.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise ArtifactError(
                f"{file} is not the result of a campaign's run: remove it and start the benchmark again"
            ) from error


def add_seconds(folder: Path, kind: str, seconds: float) -> None:
    """Add the seconds of a start of a task to those recorded in its folder."""
    total = read_seconds(folder)
    total[kind] = round(total.get(kind, 0.0) + seconds, 1)
    _write(folder / _SECONDS_FILE, json.dumps(total))


def read_seconds(folder: Path) -> dict[str, float]:
    """Read the seconds that were spent in a run's folder, by kind of command."""
    file = folder / _SECONDS_FILE
    seconds: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return seconds


def _write(file: Path, text: str) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
