"""Tasks of a campaign: each is one command of ``python -m kdpl``, with what it needs and what it leaves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdpl.data.readers.benchmark import BENCHMARKS
from kdpl.runtime.configs import config_files

Kind = Literal["fit", "import", "class_vectors", "test"]
FITS: tuple[Kind, ...] = ("fit", "import")

# a name only, since this process imports neither torch nor Lightning
CONFIG = "config.yaml"


@dataclass(frozen=True)
class Run:
    """One variant, on one dataset under one protocol with one seed: a folder, and a value in the table.

    Attributes:
        protocol: The experiment.
        setting: What tells runs of a protocol apart: ``shots_4``; empty where nothing does.
        dataset: The dataset that it is tested on.
        seed: The seed.
        row: The variant's name.
        name: Its folder below the campaign's.
    """

    protocol: str
    setting: str
    dataset: str
    seed: int
    row: str
    name: str


@dataclass(frozen=True)
class Task:
    """One command.

    Attributes:
        run: What it belongs to.
        kind: What it does.
        args: Arguments of ``python -m kdpl``.
        folder: The folder that it writes into.
        result: What is there once it is done.
        needs: Names of the tasks that must be done before.
        checkpoint: Checkpoint to be tested, if there is one by then: an untuned teacher has none.
    """

    run: Run
    kind: Kind
    args: tuple[str, ...]
    folder: Path
    result: Path
    needs: tuple[str, ...] = ()
    checkpoint: Path | None = None

    @property
    def name(self) -> str:
        """Name within the campaign: the run's folder and what is done there."""
        return f"{self.run.name}/{self.kind}"

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets whose images or class names it takes."""
        files = [Path(file) for file in config_files(self.args)]
        return tuple(file.stem for file in files if file.stem in BENCHMARKS)

    @property
    def log(self) -> Path:
        """What the command prints."""
        return self.folder / f"{self.kind}.log"

    def done(self) -> bool:
        """Whether its result is there."""
        return self.result.exists()

    def command(self) -> list[str]:
        """Give the arguments, with the checkpoint if there is one."""
        if self.checkpoint is not None and self.checkpoint.is_file():
            return [*self.args, f"--ckpt_path={self.checkpoint}"]
        return list(self.args)
