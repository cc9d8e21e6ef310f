"""A run's folder as the report reads it."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import OutOfMemoryError

from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.domain import build_data
from kdpl.errors import ArtifactError, ConfigError, DataError, KdplError, reason
from kdpl.runtime.advice import command
from kdpl.runtime.configs import read_config
from kdpl.runtime.loggers import read_metrics
from kdpl.runtime.predictions import ImagePrediction, read_predictions, read_results
from kdpl.runtime.run_folder import (
    CLASS_VECTORS_FILE,
    CLASSIFIER_FOLDER,
    CONFIG_FILE,
    METRICS_FILE,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    STAGE_FOLDERS,
    require_run,
)
from kdpl.tasks import MULTI_CLASS

T = TypeVar("T")

Pair = tuple[ImagePrediction, ImagePrediction]
"""Predictions of teacher and student for one image."""


@dataclass(frozen=True)
class Stage:
    """Folder of one stage: a fit and its test, or the test of an original CLIP; it need not exist.

    Reading a missing or damaged file raises a KdplError.
    """

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """Complete config of the fit."""
        file = self.folder / CONFIG_FILE
        config = read_config(str(file))
        match config:
            case {
                "seed_everything": int(),
                "model": {"init_args": dict()},
                "data": {"init_args": dict()},
            }:
                return config
        raise ConfigError(
            f"config {file} is not that of a fit, with seed_everything, model and data: restore it"
        )

    def settings(self, section: str) -> dict[str, Any]:
        """Return the settings of ``model`` or ``data``."""
        return dict(self.config[section]["init_args"])

    @cached_property
    def predictions(self) -> list[ImagePrediction]:
        """Predictions for the test images."""
        with _reading(self.folder / PREDICTIONS_FILE):
            if predictions := read_predictions(self.folder):
                return predictions
        raise ArtifactError(
            f"{self.folder} was not tested: if it has test images, run {test_of(self.folder)}"
        )

    @cached_property
    def results(self) -> dict[str, float]:
        """Test accuracies by metric name; empty without a test."""
        with _reading(self.folder / RESULTS_FILE):
            return read_results(self.folder)

    @cached_property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Metrics over the steps."""
        file = self.folder / METRICS_FILE
        if not file.is_file():
            raise ArtifactError(f"{file} does not exist: only a fit with the CSV logger writes it")
        with _reading(file):
            return read_metrics(file)


def test_of(stage: Path) -> str:
    """Return the command that tests the stage in a folder."""
    return command("test", "--config", stage / CONFIG_FILE, "--out", stage)


def attempt(make: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return what a function makes of a run, or else why that is impossible."""
    try:
        return make(), None
    except KdplError as error:
        return None, str(error)
    except (OSError, OutOfMemoryError) as error:
        # torch adds a paragraph on memory
        return None, reason(error)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ArtifactError(f"{file} is damaged ({reason(error)}): run the test again") from error


@dataclass(frozen=True)
class Run:
    """Stages of a run, None if missing: teacher, student, and the tests of their original CLIPs.

    With ``read_only``, nothing is written into its folder. Reading a missing or damaged file raises
    a KdplError.
    """

    folder: Path
    teacher: Stage | None
    student: Stage | None
    teacher_clip: Stage | None = None
    student_clip: Stage | None = None
    read_only: bool = False

    @classmethod
    def find(cls, folder: Path) -> "Run":
        """Find the stages of a folder of ``run``, or of a single stage and its teacher."""
        require_run(folder)
        # a single stage; a student names its teacher
        if (folder / CONFIG_FILE).is_file():
            stage = Stage(folder)
            named = stage.settings("model").get("teacher")
            if named is None:
                return cls(folder, stage, None)
            return cls(folder, Stage(Path(named)), stage)
        # a folder of run
        finished = {
            name: Stage(folder / name)
            for name in STAGE_FOLDERS
            if (folder / name / CONFIG_FILE).is_file()
        }
        for stage in finished.values():
            _ = stage.config  # a damaged config is an error, not a gap
        clips = [
            Stage(folder / "zero_shot" / name) if name in finished else None
            for name in STAGE_FOLDERS
        ]
        teacher, student = map(finished.get, STAGE_FOLDERS)
        return cls(folder, teacher, student, clips[0], clips[1])

    def require(self, role: Literal["teacher", "student"]) -> Stage:
        """Return a stage; an ArtifactError if there is none."""
        stage: Stage | None = getattr(self, role)
        if stage is None:
            number = 1 + STAGE_FOLDERS.index(role)
            raise ArtifactError(f"there is no {role}: run stage {number} to its end")
        return stage

    @property
    def stages(self) -> dict[str, Stage]:
        """Teacher and student with an existing config."""
        stages = {"teacher": self.teacher, "student": self.student}
        return {
            n: s for n, s in stages.items() if s is not None and (s.folder / CONFIG_FILE).is_file()
        }

    @property
    def untuned(self) -> bool:
        """True if the teacher is the original CLIP, without prompts and labels."""
        try:
            settings = self.stages["teacher"].settings("model")
            return all(settings[f"{tower}_prompts"]["depth"] == 0 for tower in ("vision", "text"))
        except (KdplError, KeyError, TypeError):
            return False

    @property
    def main(self) -> Stage:
        """The student's stage, or the teacher's without a student."""
        return next(stage for stage in (self.student, self.teacher) if stage is not None)

    @cached_property
    def classifier(self) -> Classifier:
        """The student's classifier."""
        return Classifier.load(self.require("student").folder / CLASSIFIER_FOLDER)

    @cached_property
    def vectors(self) -> ClassVectors:
        """Class vectors of the main stage."""
        return ClassVectors.load(self.main.folder / CLASS_VECTORS_FILE)

    @property
    def task(self) -> str:
        """Name of the task; multi-class if it cannot be read."""
        try:
            return self.vectors.task
        except KdplError:
            return MULTI_CLASS.name

    @cached_property
    def data(self) -> DomainDataModule:
        """Data that the main stage was tested on."""
        stage = self.main
        data = build_data([stage.config["data"]], [f"--data.init_args.seed={self.seed}"])
        data.reading.of_run(stage.folder)
        data.splits  # noqa: B018 - reads the dataset
        return data

    @property
    def seed(self) -> int:
        """Seed of the main stage."""
        return int(self.main.config["seed_everything"])

    @cached_property
    def labeled(self) -> "Run":
        """The run whose labels a probe may see: the student's if it trains on validation images.

        Otherwise the run up to its teacher, or all of it without one.
        """
        more = self.main.config["data"].get("init_args", {}).get("train_on_val", False)
        return self if more or "teacher" not in self.stages else replace(self, student=None)

    def tested_data(self) -> DomainDataModule:
        """Return the data; a DataError if its test images differ from the tested ones."""
        data, tested = self.data, [(p.source, p.label_number) for p in self.main.predictions]
        if [(r.source, r.label) for r in data.splits.test] != tested:
            raise DataError(
                f"{data.splits.origin} has other test images than were tested: restore "
                "it, or test again"
            )
        return data

    @cached_property
    def pairs(self) -> list[Pair]:
        """Predictions of teacher and student for the same test images."""
        if self.teacher is None or self.student is None:
            raise ArtifactError(
                f"{self.folder} has only one stage: a comparison needs teacher and student"
            )
        teacher, student = self.teacher.predictions, self.student.predictions
        first, second = (
            [(p.index, p.source, p.label_number) for p in predictions]
            for predictions in (teacher, student)
        )
        if first != second:
            raise ArtifactError(
                "teacher and student were tested on other images: test them on the same ones"
            )
        return list(zip(teacher, student, strict=True))
