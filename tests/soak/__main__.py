"""``make soak``: the quickstart many times, cut at random, on one or two processes, and always with the same end."""

import argparse
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from runs import CONFIGS, configs, rows_of
from soak.invariants import differences, grown, miscounted
from soak.killing import Trial, run_with_cuts

from kdpl.data.readers.digits import open_digit, read_digits

_DATA = configs("data/digits.yaml", "trainer/cpu.yaml")
_ORDERS = [
    *_DATA,
    f"--teacher={CONFIGS / 'teacher/quickstart.yaml'}",
    f"--student={CONFIGS / 'student/quickstart.yaml'}",
]
_ON = {1: [], 2: ["--trainer.devices=2", "--trainer.strategy=ddp"]}
_MOST_CUTS = 4
_LONG_EPOCHS = 60
_PREDICT_CUTS = 10
_PREDICT_OVER = 40  # how often the images are classified where memory is watched


@dataclass
class Result:
    """What came of one thing that was tried.

    Attributes:
        name: What it was.
        trial: How it went.
        faults: What is wrong with its end.
    """

    name: str
    trial: Trial
    faults: list[str]


class Soak:
    """All that is tried.

    Args:
        out: Folder for everything; what is in it is removed.
        seed: Of the cuts.
        epochs: Epochs of either stage; None: the quickstart's own.
    """

    def __init__(self, out: Path, seed: int, epochs: int | None) -> None:
        self.out = out
        self.draw = random.Random(seed)  # noqa: S311
        self.long_epochs = _LONG_EPOCHS if epochs is None else 10 * epochs
        self.epochs = [] if epochs is None else [f"--trainer.max_epochs={epochs}"]
        shutil.rmtree(out, ignore_errors=True)
        self.images = out / "images"
        self.images.mkdir(parents=True)
        self.records = read_digits().test
        for i, record in enumerate(self.records):
            open_digit(record.source).save(self.images / f"{i:04}.png")
        self.seconds: dict[int, float] = {}

    def reference(self, processes: int) -> Result:
        """The quickstart on so many processes, never cut."""
        trial = run_with_cuts(self._run(processes), 0, 0.0, self.draw)
        if trial.faults:
            raise SystemExit(f"the quickstart fails uncut on {processes}: {'; '.join(trial.faults)}")
        self.seconds[processes] = trial.seconds
        (self.out / "run").rename(self._reference(processes))
        return Result(f"uncut, {processes} process{'es' * (processes > 1)}", trial, [])

    def quickstart(self, number: int) -> Result:
        """The quickstart on one or two processes, cut at random; its folder goes where nothing is wrong with it."""
        processes = self.draw.choice(sorted(self.seconds))
        cuts = self.draw.randint(1, _MOST_CUTS)
        trial = run_with_cuts(self._run(processes), cuts, self.seconds[processes], self.draw)
        run = self.out / "run"
        faults = differences(self._reference(processes), run, len(self.records))
        if faults or trial.faults:
            run.rename(self.out / f"run-{number:02}")
        else:
            shutil.rmtree(run)
        return Result(f"run {number}, {processes} process{'es' * (processes > 1)}", trial, faults)

    def long_fit(self) -> Result:
        """A fit of many epochs, whose memory must not grow."""
        teacher = self._reference(1) / "teacher"
        args = [
            *["fit", *_DATA, *configs("student/quickstart.yaml"), f"--model.init_args.teacher={teacher}"],
            *[f"--out={self.out / 'long'}", f"--trainer.max_epochs={self.long_epochs}"],
        ]
        trial = run_with_cuts(args, 0, 0.0, self.draw)
        return Result("memory of a long fit", trial, grown(trial.memory))

    def predict(self) -> list[Result]:
        """Many images, classified at one go, in which memory must not grow, and over ten cuts."""
        listed = [str(path) for path in sorted(self.images.iterdir())] * _PREDICT_OVER
        (self.out / "list.txt").write_text("\n".join(listed))
        args = ["predict", str(self._reference(1) / "student" / "classifier"), f"--list={self.out / 'list.txt'}"]
        uncut, cut = self.out / "uncut.csv", self.out / "cut.csv"
        whole = run_with_cuts([*args, f"--out={uncut}"], 0, 0.0, self.draw)
        # each cut leaves most of the work to be done, so that there are all ten
        trial = run_with_cuts([*args, f"--out={cut}"], _PREDICT_CUTS, whole.seconds / 3, self.draw)
        faults = miscounted(cut, "path", listed)
        if [row["class"] for row in rows_of(cut)] != [row["class"] for row in rows_of(uncut)]:
            faults.append("other answers")
        if len(trial.cuts) < _PREDICT_CUTS:
            faults.append(f"it was cut {len(trial.cuts)} times in place of {_PREDICT_CUTS}")
        return [
            Result("memory of a long prediction", whole, grown(whole.memory)),
            Result("prediction, cut", trial, faults),
        ]

    def _run(self, processes: int) -> list[str]:
        # always under this name, which stands in configs and checkpoints
        return ["run", *_ORDERS, f"--out={self.out / 'run'}", *self.epochs, *_ON[processes]]

    def _reference(self, processes: int) -> Path:
        return self.out / f"reference-{processes}"


def main() -> int:
    """Try everything and print a report; 0 if nothing was wrong."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how many runs are cut (default 20)")
    parser.add_argument("--epochs", type=int, help="epochs of either stage; default: the quickstart's own")
    parser.add_argument("--seed", type=int, help="of the cuts; default: another each time")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    console = Console()
    console.print(f"seed of the cuts: {seed}")
    soak = Soak(options.out.absolute(), seed, options.epochs)
    results: list[Result] = []

    def note(result: Result) -> None:
        results.append(result)
        faults = result.trial.faults + result.faults
        said = "; ".join(faults) or "as it should be"
        console.print(f"{result.name}: {said} ({result.trial.seconds:.0f} s)", soft_wrap=True)

    for processes in _ON:
        note(soak.reference(processes))
    for number in range(1, options.runs + 1):
        note(soak.quickstart(number))
    note(soak.long_fit())
    for result in soak.predict():
        note(result)
    console.print(_table(results))
    good = sum(not (result.trial.faults or result.faults) for result in results)
    cuts = sum(len(result.trial.cuts) for result in results)
    console.print(f"{good} of {len(results)} as they should be, over {cuts} cuts, seed {seed}")
    return 0 if good == len(results) else 1


def _table(results: list[Result]) -> Table:
    table = Table("what", "cuts", "seconds", "peak MB", "outcome")
    for result in results:
        trial = result.trial
        faults = trial.faults + result.faults
        table.add_row(
            result.name,
            ", ".join(trial.cuts) or "-",
            f"{trial.seconds:.0f}",
            f"{max(trial.memory, default=0):.0f}",
            "\n".join(faults) or "same",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
