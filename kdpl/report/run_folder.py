"""What a run left in its folder, as the report reads it."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.section import build_data
from kdpl.errors import ArtifactError, ConfigError, DataError, reason
from kdpl.report.trust import require_known_classes
from kdpl.runtime.configs import read_config
from kdpl.runtime.loggers import METRICS_FILE, read_metrics
from kdpl.runtime.predictions import PREDICTIONS_FILE, RESULTS_FILE, Answer, read_answers, read_results
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER, CONFIG_FILE

Read = TypeVar("Read")


@dataclass(frozen=True)
class Stage:
    """One stage's folder: a fit and its test, or a test of a CLIP as it came.

    Attributes:
        folder: Where; it need not exist.
        trusted: Whether its config may name classes of anybody's.
    """

    folder: Path
    trusted: bool = False

    @cached_property
    def config(self) -> dict[str, Any]:
        """The complete config of its fit.

        Raises:
            ConfigError: It is missing, not YAML, or names a class that is none of kdpl's.
        """
        file = self.folder / CONFIG_FILE
        config = read_config(str(file))
        if not self.trusted:
            require_known_classes(config, file)
        whole = all(isinstance(self.section(config, name), dict) for name in ("model", "data"))
        if not whole or not isinstance(config.get("seed_everything"), int):
            raise ConfigError(f"config {file} is not that of a fit, with seed_everything, model and data: restore it")
        return config

    @staticmethod
    def section(config: dict[str, Any], name: str) -> Any:  # noqa: ANN401
        """The settings of the model or the data."""
        section = config.get(name)
        return section.get("init_args") if isinstance(section, dict) else None

    @property
    def model(self) -> dict[str, Any]:
        """The settings of its model."""
        settings: dict[str, Any] = self.section(self.config, "model")
        return settings

    @property
    def data_settings(self) -> dict[str, Any]:
        """The settings of its data."""
        settings: dict[str, Any] = self.section(self.config, "data")
        return settings

    @cached_property
    def answers(self) -> list[Answer]:
        """What it answered on the test images.

        Raises:
            ArtifactError: It was not tested, or the file is damaged.
        """
        answers = _read(self.folder / PREDICTIONS_FILE, lambda: read_answers(self.folder))
        if not answers:
            raise ArtifactError(
                f"{self.folder} was not tested: python -m kdpl test --config {self.folder}/{CONFIG_FILE}"
            )
        return answers

    @cached_property
    def results(self) -> dict[str, float]:
        """Its test accuracies.

        Raises:
            ArtifactError: It was not tested, or the file is damaged.
        """
        results = _read(self.folder / RESULTS_FILE, lambda: read_results(self.folder))
        if "test/acc" not in results:
            raise ArtifactError(
                f"{self.folder} was not tested: python -m kdpl test --config {self.folder}/{CONFIG_FILE}"
            )
        return results

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each answer is right, [N]."""
        return np.array([a.label == a.prediction for a in self.answers])

    @cached_property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Its metrics over the steps.

        Raises:
            ArtifactError: There are none, or the file is damaged.
        """
        file = self.folder / METRICS_FILE
        if not file.is_file():
            raise ArtifactError(f"{file} does not exist: only a fit with the CSV logger leaves it")
        return _read(file, lambda: read_metrics(file))


def _read(file: Path, read: Callable[[], Read]) -> Read:
    try:
        return read()
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ArtifactError(f"{file} is damaged ({reason(error)}): run the test again") from error


@dataclass(frozen=True)
class Run:
    """The stages of a run, as far as they are there.

    Attributes:
        folder: What the report is of.
        teacher: Stage 1.
        student: Stage 2.
        teacher_clip: The test of the teacher's CLIP as it came.
        student_clip: The test of the student's CLIP as it came.
    """

    folder: Path
    teacher: Stage | None
    student: Stage | None
    teacher_clip: Stage | None
    student_clip: Stage | None

    @classmethod
    def find(cls, folder: Path, trusted: bool = False) -> "Run":
        """Find the stages in the folder of ``run``, or in that of a single stage and its teacher's.

        Args:
            folder: The folder.
            trusted: Whether the configs in it may name classes of anybody's.

        Raises:
            ConfigError: It is neither.
        """
        if not folder.is_dir():
            raise ConfigError(f"run folder {folder} does not exist: give the --out of run or of fit")
        if (folder / CONFIG_FILE).is_file():
            stage = Stage(folder, trusted)
            teacher = stage.model.get("teacher")
            if teacher is None:
                return cls(folder, stage, None, None, None)
            return cls(folder, Stage(Path(teacher), trusted), stage, None, None)
        stages = {name: Stage(folder / name, trusted) for name in ("teacher", "student")}
        found = {name: stage for name, stage in stages.items() if (stage.folder / CONFIG_FILE).is_file()}
        if not found:
            raise ConfigError(
                f"{folder} is not a run's folder, because neither it nor teacher/ or student/ in it has a "
                f"{CONFIG_FILE}: give the --out of run or of fit"
            )
        for stage in found.values():
            _ = stage.config  # a damaged one is better said than left out
        clips = {name: Stage(folder / "zero_shot" / name, trusted) for name in found}
        return cls(folder, found.get("teacher"), found.get("student"), clips.get("teacher"), clips.get("student"))

    @property
    def stages(self) -> dict[str, Stage]:
        """Teacher and student, as far as their configs can be read."""
        named = {"teacher": self.teacher, "student": self.student}
        return {n: s for n, s in named.items() if s is not None and (s.folder / CONFIG_FILE).is_file()}

    @property
    def main(self) -> Stage:
        """The student's stage, or the teacher's where there is no student."""
        stage = self.student or self.teacher
        if stage is None:
            raise ConfigError(f"{self.folder} has no stage: give the --out of run or of fit")
        return stage

    @cached_property
    def classifier(self) -> Classifier:
        """The student's classifier.

        Raises:
            ArtifactError: There is none.
        """
        if self.student is None:
            raise ArtifactError("there is no student: run stage 2 to its end")
        return Classifier.load(self.student.folder / CLASSIFIER_FOLDER)

    @cached_property
    def vectors(self) -> ClassVectors:
        """The class vectors: the classifier's, or the teacher's where there is no student."""
        if self.student is not None:
            return self.classifier.vectors
        return ClassVectors.load(self.main.folder / CLASS_VECTORS_FILE)

    @cached_property
    def data(self) -> DomainDataModule:
        """The data that the main stage was tested on.

        Raises:
            ConfigError: The data section does not parse, or is of another kind.
            DataError: The dataset is missing, damaged or another one.
        """
        stage = self.main
        data = build_data([stage.config["data"]], [f"--data.init_args.seed={stage.config['seed_everything']}"])
        if not isinstance(data, DomainDataModule):
            raise ConfigError(f"{type(data).__name__} is not a DomainDataModule: images and validation are left out")
        data.of_run(stage.folder)
        data.splits  # noqa: B018 - reads the dataset
        return data

    def require_tested_images(self) -> DomainDataModule:
        """Give the data, whose test images must be those that were tested."""
        data, answers = self.data, self.main.answers
        there = [(r.source, data.class_names[r.label]) for r in data.test_records]
        if there != [(a.source, a.label) for a in answers]:
            raise DataError(f"{data.splits.origin} has other test images than were tested: restore it, or test again")
        return data

    @cached_property
    def answers_side_by_side(self) -> list[tuple[Answer, Answer]]:
        """Teacher's and student's answers on the same test images.

        Raises:
            ArtifactError: One of them was not tested, or on other images.
        """
        if self.teacher is None or self.student is None:
            raise ArtifactError(f"{self.folder} has one stage alone: a comparison needs teacher and student")
        pairs = list(zip(self.teacher.answers, self.student.answers, strict=False))
        same = all((t.index, t.source, t.label) == (s.index, s.source, s.label) for t, s in pairs)
        if not same or len(self.teacher.answers) != len(self.student.answers):
            raise ArtifactError("teacher and student were tested on other images: test them on the same ones")
        return pairs
