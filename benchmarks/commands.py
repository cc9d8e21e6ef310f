"""Processor time of short commands, which is mostly that of imports."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.distillation import begun_student
from benchmarks.measuring import median
from benchmarks.photographs import write_photographs
from benchmarks.settings import Settings
from benchmarks.sizes import SMALL
from benchmarks.teacher import RandomTeacher
from kdpl.cli import COMMANDS


def commands(settings: Settings) -> Iterator[tuple[str, float, str, float]]:
    """Run commands in turn, on one thread; yields what was run, value, unit and target.

    The classifier is a miniature with random weights, whatever the size of the other comparisons.
    """
    with TemporaryDirectory() as folder:
        classifier, file = Path(folder, "classifier"), Path(folder, "classifier.onnx")
        names = SMALL.names(SMALL.few)
        student = begun_student(SMALL, names, RandomTeacher(SMALL), cached=True)
        student.classifier().save(classifier)
        (image,) = write_photographs(Path(folder, "photographs"), 1)
        kdpl = ("-m", "kdpl")
        sides = {
            "predict": (*kdpl, "predict", str(classifier), str(image)),
            "export": (*kdpl, "export", str(classifier), "--format", "onnx", "--out", str(file)),
            **{f"{name} --help": (*kdpl, name, "--help") for name in COMMANDS},
            "import torch": ("-c", "import torch"),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(settings.repeats):
            for side, arguments in sides.items():
                seconds[side].append(_processor_time(*arguments))
                file.unlink(missing_ok=True)
    times = {side: median(values) for side, values in seconds.items()}
    torch = times.pop("import torch")
    for side, most in (("predict", 2.0), ("export", 3.0)):
        yield f"{side}: processor time above import torch", times.pop(side) - torch, "s", most
    slowest = max(times, key=lambda side: times[side])
    yield f"{slowest}, the slowest of all: processor time", times[slowest], "s", 0.5


def _processor_time(*arguments: str) -> float:
    """Run Python with arguments on one thread; returns the seconds it computed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
