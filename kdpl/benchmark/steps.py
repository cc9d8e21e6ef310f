"""Runs of a campaign, their steps, each one command of ``python -m kdpl``, and their results."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from kdpl.errors import ArtifactError
from kdpl.runtime.configs import config_files, read_config
from kdpl.runtime.files import write_text
from kdpl.runtime.steps import Step

RESULT_FILE = "results.json"
"""File in the folder of a tested run with its ``Result``."""

_COMMAND_FILE = "command.json"


class Coordinates(BaseModel):
    """One variant, the ``row``, tested on one dataset under one protocol with one seed.

    The ``setting`` tells runs of a protocol apart, as ``shots_4`` does; it may be empty. ``title``
    is the row's, as a table shows it.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    protocol: str
    setting: str
    dataset: str
    seed: int
    row: str
    title: str


class CampaignRun(Coordinates):
    """A run, whose ``name`` is its folder below the campaign's."""

    name: str


class Result(Coordinates):
    """A run's accuracies, fractions by metric name, on its test images.

    ``transductive``: unlabelled images of novel classes were seen in training.
    ``selected_on_test``: the epoch was chosen by its accuracy on the base classes' test images.
    ``probe``: it is that of a linear probe of the run's network, whose title is also its row.
    """

    metrics: dict[str, float]
    images: int
    transductive: bool
    selected_on_test: bool
    probe: bool = False


def read_all(out: Path) -> Iterator[Result]:
    """Read the results of all finished runs below a campaign's folder."""
    for file in sorted(out.glob(f"*/**/{RESULT_FILE}")):
        try:
            yield Result.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise ArtifactError(
                f"{file} is not the result of a campaign's run: remove it and start the benchmark "
                "again"
            ) from error


@dataclass(frozen=True)
class CampaignStep(Step):
    """One command of a run, in another process.

    Its title is the run's folder and its kind, ``fit``, ``class_vectors`` or ``test``.

    Attributes:
        needs: Titles of the steps that must be done before.
        args: Arguments of ``python -m kdpl``; of another process, they are text.
        checkpoint: Checkpoint to test, if it exists by then: an untuned teacher has none.
    """

    needs: tuple[str, ...]
    run: CampaignRun = field(kw_only=True)
    args: tuple[str, ...] = field(kw_only=True)
    checkpoint: Path | None = None

    @property
    def log(self) -> Path:
        """File that the command's output is appended to."""
        return self.folder / f"{self.kind}.log"

    def command(self) -> list[str]:
        """Return the arguments, with the checkpoint if it exists."""
        if self.checkpoint is not None and self.checkpoint.is_file():
            return [*self.args, f"--ckpt_path={self.checkpoint}"]
        return list(self.args)

    def save_command(self) -> None:
        """Record the command of a fit in its folder, with the contents of its config files."""
        write_text(self.folder / _COMMAND_FILE, self._recorded())

    def has_other_command(self) -> bool:
        """Return True if a fit was started by another command."""
        file = self.folder / _COMMAND_FILE
        return (
            self.kind == "fit"
            and file.is_file()
            and file.read_text(encoding="utf-8") != self._recorded()
        )

    def _recorded(self) -> str:
        contents = {file: read_config(file) for file in config_files(self.args)}
        return json.dumps({"args": list(self.args), "configs": contents}, indent=2, default=str)


def shots_of(setting: str) -> int | None:
    """Return the number of shots of a run's ``setting``, if it is one."""
    return int(setting.removeprefix("shots_")) if setting else None


def one_of_each_kind(steps: Iterable[CampaignStep]) -> list[CampaignStep]:
    """Return one fit for each row and combination of configs."""
    kinds: dict[tuple[str, ...], CampaignStep] = {}
    for step in steps:
        if step.kind == "fit":
            # the first config is the dataset's
            kinds.setdefault((step.run.row, *config_files(step.args)[1:]), step)
    return list(kinds.values())
