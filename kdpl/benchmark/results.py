"""What a finished run of a campaign leaves for the table: one ``results.json`` with its coordinates."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from kdpl.errors import ArtifactError
from kdpl.runtime.files import atomic_path

RUN_FILE = "results.json"
_SECONDS_FILE = "seconds.json"


@dataclass(frozen=True)
class Result:
    """A run's accuracies and how they came about.

    Attributes:
        protocol: The experiment.
        setting: What tells runs of a protocol apart, such as ``shots_4``; may be empty.
        dataset: The dataset that was tested on.
        seed: The seed.
        row: The variant's name.
        title: The variant, for people.
        metrics: Accuracies as fractions, by metric name.
        images: Number of test images.
        transductive: Whether unlabelled images of novel classes were seen in training.
        selected_on_test: Whether the epoch was chosen by its accuracy on the base classes' test images.
        seconds: Wall-clock seconds by what was done; a start that was killed is not counted.
    """

    protocol: str
    setting: str
    dataset: str
    seed: int
    row: str
    title: str
    metrics: Mapping[str, float]
    images: int
    transductive: bool
    selected_on_test: bool
    seconds: Mapping[str, float]

    def save(self, folder: Path) -> None:
        """Write into a run's folder, atomically."""
        with atomic_path(folder / RUN_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")


def read_all(out: Path) -> Iterator[Result]:
    """Read the results of all finished runs below a campaign's folder.

    Raises:
        ArtifactError: A file is not one of a campaign's run.
    """
    for file in sorted(out.glob(f"*/**/{RUN_FILE}")):
        try:
            yield Result(**json.loads(file.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"{file} is not the result of a campaign's run: remove it and start again") from error


def selected_on_test(config: Path) -> bool:
    """Whether a run's config asks for the epoch with the best accuracy on the base classes' test images."""
    settings: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    return bool(settings["model"]["init_args"].get("choice") == "best_on_base_test")


def add_seconds(folder: Path, kind: str, seconds: float) -> None:
    """Count the seconds of a start of a task, in its folder."""
    total = read_seconds(folder)
    total[kind] = round(total.get(kind, 0.0) + seconds, 1)
    with atomic_path(folder / _SECONDS_FILE) as temporary:
        temporary.write_text(json.dumps(total), encoding="utf-8")


def read_seconds(folder: Path) -> dict[str, float]:
    """Read the seconds that were spent in a run's folder, by what was done."""
    file = folder / _SECONDS_FILE
    if not file.is_file():
        return {}
    seconds: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
    return seconds
