"""Runs of a campaign, their tasks, each one command of ``python -m kdpl``, and their results."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kdpl.benchmark.readers import BENCHMARKS, BenchmarkSet
from kdpl.errors import ArtifactError, DataError
from kdpl.runtime.configs import config_files, read_config
from kdpl.runtime.files import write_text

Kind = Literal["fit", "class_vectors", "test"]

RESULT_FILE = "results.json"
"""File in the folder of a tested run with its ``Result``."""

_COMMAND_FILE = "command.json"


class Coordinates(BaseModel):
    """One variant, the ``row``, tested on one dataset under one protocol with one seed.

    The ``setting`` tells runs of a protocol apart, as ``shots_4`` does; it may be empty.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    protocol: str
    setting: str
    dataset: str
    seed: int
    row: str


class CampaignRun(Coordinates):
    """A run, whose ``name`` is its folder below the campaign's."""

    name: str


class Result(Coordinates):
    """A run's accuracies, fractions by metric name, on so many test images.

    ``transductive``: unlabelled images of novel classes were seen in training.
    ``selected_on_test``: the epoch was chosen by its accuracy on the base classes' test images.
    ``probe``: it is that of a linear probe of the run's network, whose title is also its row.
    """

    title: str
    metrics: dict[str, float]
    images: int
    transductive: bool
    selected_on_test: bool
    probe: bool = False


def read_all(out: Path) -> Iterator[Result]:
    """Read the results of all finished runs below a campaign's folder.

    Raises an ArtifactError for any other file.
    """
    for file in sorted(out.glob(f"*/**/{RESULT_FILE}")):
        try:
            yield Result.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise ArtifactError(
                f"{file} is not the result of a campaign's run: remove it and start the benchmark "
                "again"
            ) from error


@dataclass(frozen=True)
class Task:
    """One command of a run.

    Attributes:
        kind: The kind of command.
        args: Arguments of ``python -m kdpl``.
        folder: The folder that it writes into.
        result: A file or folder that exists once it is done.
        needs: Names of the tasks that must be done before.
        checkpoint: Checkpoint to test, if it exists by then: an untuned teacher has none.
    """

    run: CampaignRun
    kind: Kind
    args: tuple[str, ...]
    folder: Path
    result: Path
    needs: tuple[str, ...] = ()
    checkpoint: Path | None = None

    @property
    def name(self) -> str:
        """Name within the campaign: the run's folder and the kind of command."""
        return f"{self.run.name}/{self.kind}"

    @property
    def log(self) -> Path:
        """File that the command's output is appended to."""
        return self.folder / f"{self.kind}.log"

    def done(self) -> bool:
        """Return True if its result is there."""
        return self.result.exists()

    def command(self) -> list[str]:
        """Return the arguments, with the checkpoint if it exists."""
        if self.checkpoint is not None and self.checkpoint.is_file():
            return [*self.args, f"--ckpt_path={self.checkpoint}"]
        return list(self.args)

    def save_command(self) -> None:
        """Record the command of a fit in its folder, with the contents of its config files."""
        write_text(self.folder / _COMMAND_FILE, self._recorded())

    def has_other_command(self) -> bool:
        """Return True if a fit was started by another command.

        ``fit`` can tell if its settings differ.
        """
        file = self.folder / _COMMAND_FILE
        return (
            self.kind == "fit"
            and file.is_file()
            and file.read_text(encoding="utf-8") != self._recorded()
        )

    def _recorded(self) -> str:
        contents = {file: read_config(file) for file in config_files(self.args)}
        return json.dumps({"args": list(self.args), "configs": contents}, indent=2, default=str)


def missing_data(tasks: Iterable[Task], root: str | None) -> list[str]:
    """Describe what is missing below ``root`` of the benchmark's datasets that tasks need."""
    faults = []
    configs = dict.fromkeys(Path(file).stem for task in tasks for file in config_files(task.args))
    for name in (name for name in configs if name in BENCHMARKS):
        if root is None:
            faults.append(f"dataset {name} needs the folder of all datasets: give it as --root")
            continue
        dataset = BenchmarkSet(name, root)
        try:
            dataset.require_folder(dataset.images)
            dataset.read_text(dataset.index)
        except DataError as error:
            faults.append(str(error))
    return faults


def one_of_each_kind(tasks: Iterable[Task]) -> list[Task]:
    """Return one fit for each row and combination of configs.

    The others differ only in dataset and seed.
    """
    kinds: dict[tuple[str, ...], Task] = {}
    for task in tasks:
        if task.kind == "fit":
            # the first config is the dataset's
            kinds.setdefault((task.run.row, *config_files(task.args)[1:]), task)
    return list(kinds.values())
