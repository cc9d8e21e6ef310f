"""Runs of the command line on the handwritten digits with the miniature CLIPs, small enough for tests."""

import csv
import inspect
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from forked import ForkedProcess
from PIL import Image

import kdpl.cli.fit
from kdpl import DomainDataModule
from kdpl.__main__ import main
from kdpl.callbacks.finite_loss import FiniteLoss
from kdpl.classifier.sources import Item
from kdpl.runtime.loggers import read_metrics
from kdpl.runtime.run_folder import METRICS_FILE

CONFIGS = Path(__file__).parents[1] / "configs"


def configs(*names):
    return [f"--config={CONFIGS / name}" for name in names]


DATA = configs("data/digits.yaml", "trainer/cpu.yaml")
TEACHER = configs("teacher/quickstart.yaml")
STUDENT = configs("student/quickstart.yaml")
# both, as options of run
STAGES = [
    f"--teacher={CONFIGS}/teacher/quickstart.yaml",
    f"--student={CONFIGS}/student/quickstart.yaml",
]
SHORT = [
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=3",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
]
# the columns of measured times
AVERAGING = ["--model.init_args.averaging={mean: 2, std: 1}"]


def fit_teacher(out, *more):
    return main(["fit", *DATA, *TEACHER, *SHORT, f"--out={out}", *more])


def folder_fit(root, out):
    """The command that fits a teacher for two epochs on what ``image_folder`` wrote."""
    data = [*configs("data/folder.yaml", "trainer/cpu.yaml"), f"--data.init_args.root={root}"]
    few = [
        "--data.init_args.shots=4",
        "--data.init_args.batch_size=4",
        "--trainer.limit_train_batches=1.0",
    ]
    return ["fit", *data, *TEACHER, *SHORT, *few, f"--out={out}"]


def fit_student(out, teacher, *more):
    given = [f"--model.init_args.teacher={teacher}", f"--out={out}"]
    return main(["fit", *DATA, *STUDENT, *SHORT, *given, *more])


def test(out, *more):
    return main(["test", f"--config={out}/config.yaml", *more])


test.__test__ = False


@contextmanager
def interrupted_at(step):
    """Interrupt ``run`` or a search as it begins the step of this number, counted from 1."""
    began, original = [], kdpl.cli.fit.run_stage

    def run_stage(stage):
        began.append(stage)
        if len(began) == step:
            raise KeyboardInterrupt
        original(stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpl.cli.fit.run_stage", run_stage)
        yield


def start_process(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **variables):
    """``python -m kdpl`` with these arguments, in a process group of its own that a test may interrupt or kill.

    ``variables`` are added to its environment.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return ForkedProcess(["-m", "kdpl", *args], environment, stdout=stdout, stderr=stderr)


def processes_of(group):
    """The processes of a group that have not ended."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, owner = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(owner) == group and state != "Z":
            pids.append(int(stat.parent.name))
    return pids


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "a condition does not come true"
        time.sleep(0.05)


def error_line(capsys, *words, err=None):
    """The last line of what was printed, an error without a traceback that has these words."""
    err = capsys.readouterr().err if err is None else err
    assert "Traceback" not in err
    assert err.count("error: ") == 1, err
    line = err.splitlines()[-1]
    assert line.startswith("error: "), err
    for word in words:
        assert word in line, line
    return line


def refused(capsys, code, *words):
    """Require a command to have ended with 1 and to have printed nothing but one line, an error with these words."""
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (1, "", 1), err
    error_line(capsys, *words, err=err)


@contextmanager
def at_step(step, act):
    """Call ``act`` at the end of that training step, before anything is saved."""
    original = FiniteLoss.on_train_batch_end

    def end(self, trainer, *args):
        if trainer.global_step == step:
            act()
        return original(self, trainer, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FiniteLoss, "on_train_batch_end", end)
        yield


def image_folder(root, classes=("cat", "dog"), images=4, splits=("train", "test"), extension="png"):
    """Write a folder of images, ROOT/<split>/<class>/<number>, each of another colour."""
    for split in splits:
        for number, name in enumerate(classes):
            folder = Path(root) / split / name
            folder.mkdir(parents=True)
            for i in range(images):
                colour = (40 * number, 30 * i, 200 if split == "train" else 90)
                Image.new("RGB", (40, 36), colour).save(folder / f"{i}.{extension}")
    return root


def in_folder(root, **options):
    """The datamodule of a folder of images."""
    return DomainDataModule("folder", root=str(root), num_workers=0, **options)


def noise(width, height, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def rows_of(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def curves_of(run):
    """The metrics of a run's folder as curves."""
    return read_metrics(Path(run) / METRICS_FILE)


def files_of(folder):
    """What is in a folder: each file's time and content by its relative path."""
    folder = Path(folder)
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in folder.rglob("*")
        if p.is_file()
    }


def reachable(value, seen=None):
    """All that can be reached from an object through attributes and containers."""
    seen = {} if seen is None else seen
    if id(value) in seen or inspect.isclass(value) or inspect.isroutine(value):
        return seen
    seen[id(value)] = value
    children = list(getattr(value, "__dict__", {}).values())
    if isinstance(value, dict):
        children += list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        children += list(value)
    for child in children:
        reachable(child, seen)
    return seen


def interrupt_predict(monkeypatch, at):
    """Raise KeyboardInterrupt as predict opens the image of this number; returns the images so far."""
    plain, calls = Item.open, []

    def stops(item, decoding):
        calls.append(item)
        if len(calls) == at:
            raise KeyboardInterrupt
        return plain(item, decoding=decoding)

    monkeypatch.setattr(Item, "open", stops)
    return calls
