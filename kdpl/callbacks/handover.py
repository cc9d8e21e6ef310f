"""What a finished stage leaves for the next: class vectors after stage 1, the classifier after stage 2."""

from abc import abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.prompts.tuned import FILE as PROMPTS_FILE
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER
from kdpl.runtime.wandb_artifacts import (
    CLASS_VECTORS,
    CLASSIFIER,
    TEACHER,
    accuracies,
    artifact_name,
    log_input,
    log_output,
)


class _Handover(Callback):
    """Writes something once a fit has come to its planned end, not when it was cut short."""

    def __init__(self) -> None:
        self._written = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write while the model is still on its device."""
        self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write after a fit of no epochs, which has no training to end."""
        self._finish(trainer, pl_module)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._written:
            return
        self._written = True
        if not _came_to_its_end(trainer):
            rank_zero_warn("training was cut short: start the same command again to go on; nothing was handed over")
            return
        self.write(trainer, pl_module, Path(trainer.default_root_dir))
        trainer.strategy.barrier("kdpl handover")

    @abstractmethod
    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Write into the run's folder; called on all processes."""


def _came_to_its_end(trainer: Trainer) -> bool:
    epochs = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch
    steps = 0 <= trainer.max_steps <= trainer.global_step
    # whoever asks for early stopping plans to end before the last epoch
    early = any(isinstance(c, EarlyStopping) and c.stopped_epoch > 0 for c in trainer.callbacks)  # type: ignore[attr-defined]
    return epochs or steps or early


class _Freezable(Protocol):
    def class_vectors(self) -> ClassVectors: ...
    def tuned_prompts(self) -> TunedPrompts: ...


class FreezeClassVectors(_Handover):
    """At the end of stage 1, encodes all class names with the tuned prompts and writes them to the run's folder.

    Writes ``prompts.safetensors`` and then ``class_vectors.safetensors``, each atomically, from one process. The
    second stands for a finished stage 1. From here on no text tower runs (PromptKD, arXiv 2403.02781, section 3.2).
    """

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Encode on all processes, write on one."""
        teacher: _Freezable = pl_module  # type: ignore[assignment]
        vectors = teacher.class_vectors()
        if not trainer.is_global_zero:
            return
        teacher.tuned_prompts().save(folder / PROMPTS_FILE)
        vectors.save(folder / CLASS_VECTORS_FILE)
        rank_zero_info(f"class vectors of {len(vectors.class_names)} classes: {folder / CLASS_VECTORS_FILE}")
        said = {**_about(vectors), **accuracies(trainer.callback_metrics)}
        name = artifact_name(TEACHER, vectors.teacher)
        log_output(trainer.loggers, TEACHER, name, folder / PROMPTS_FILE, said)
        said = {**vectors.fields(), **said, "made_with": name}
        name = artifact_name(CLASS_VECTORS, vectors.teacher)
        log_output(trainer.loggers, CLASS_VECTORS, name, folder / CLASS_VECTORS_FILE, said)


def _about(vectors: ClassVectors) -> dict[str, str | int]:
    return {"teacher": vectors.teacher, "num_classes": len(vectors.class_names)}


class _Classifying(Protocol):
    class_vectors_path: Path
    vectors: ClassVectors

    def classifier(self) -> Classifier: ...


class SaveClassifier(_Handover):
    """At the end of stage 2, writes the classifier, which needs neither teacher nor Lightning, to the run's folder."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell W&B which class vectors the student learns from."""
        if trainer.is_global_zero:
            student: _Classifying = pl_module  # type: ignore[assignment]
            name = artifact_name(CLASS_VECTORS, student.vectors.teacher)
            log_input(trainer.loggers, CLASS_VECTORS, name, student.class_vectors_path, _about(student.vectors))

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Write on one process."""
        student: _Classifying = pl_module  # type: ignore[assignment]
        if not trainer.is_global_zero:
            return
        classifier = student.classifier()
        classifier.save(folder / CLASSIFIER_FOLDER)
        rank_zero_info(f"classifier: {folder / CLASSIFIER_FOLDER}")
        said = {
            **_about(classifier.vectors),
            **accuracies(trainer.callback_metrics),
            "clip": asdict(classifier.clip),
            "made_with": artifact_name(CLASS_VECTORS, classifier.vectors.teacher),
        }
        log_output(trainer.loggers, CLASSIFIER, None, folder / CLASSIFIER_FOLDER, said)
