"""Results of a finished stage: class vectors after stage 1, the classifier after stage 2."""

from abc import abstractmethod
from pathlib import Path
from pkgutil import resolve_name
from typing import Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from kdpl.callbacks.loggers.wandb_logger import RunWandbLogger
from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier, Decoding
from kdpl.data.domain import domain_of
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.messages import inform, warn
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER, PROMPTS_FILE

_MAKE_COMPANIONS = "kdpl.confidence.companions:make_companions"
"""Called by its path: it imports this file's users."""


class Handover(Callback):
    """Base of callbacks that write a result at the planned end of a fit, not on interruption.

    The last checkpoint is written before, so a kill in between loses no training.

    Attributes:
        warns: Whether to warn after a training that ended early that nothing is written.
    """

    warns = True

    def __init__(self) -> None:
        self._written = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write while the model is on its device, or on the CPU after a fit without training."""
        if self._written:
            return
        self._written = True
        if not _is_finished(trainer):
            if self.warns:
                warn(
                    "training ended early: rerun the same command to resume; nothing was handed "
                    "over"
                )
            return
        self.write(trainer, pl_module, Path(trainer.default_root_dir))
        trainer.strategy.barrier("kdpl handover")

    on_fit_end = on_train_end

    @abstractmethod
    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Write into the run's folder; called on all processes."""


def _is_finished(trainer: Trainer) -> bool:
    epochs = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch
    steps = 0 <= trainer.max_steps <= trainer.global_step
    # early stopping is a planned end as well
    early = any(
        isinstance(callback, EarlyStopping) and callback.stopped_epoch > 0
        for callback in trainer.early_stopping_callbacks
    )
    return epochs or steps or early


def _log_result(trainer: Trainer, path: Path) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, RunWandbLogger):
            logger.log_result(path)


class Tuned(Protocol):
    """What the module of stage 1 hands over."""

    def class_vectors(self) -> ClassVectors:
        """Encode the class names."""

    def tuned_prompts(self) -> TunedPrompts:
        """Return the prompts."""


class Distilled(Protocol):
    """What the module of stage 2 hands over."""

    vectors: ClassVectors

    def classifier(self, decoding: Decoding) -> Classifier:
        """Return the classifier."""


class FreezeClassVectors(Handover):
    """Encodes all class names with the tuned prompts at the end of stage 1, into the run's folder.

    Writes ``prompts.safetensors`` and then ``class_vectors.safetensors``, each atomically, from one
    process. The second file marks a finished stage 1. No text tower runs from here on (PromptKD,
    arXiv 2403.02781, section 3.2).
    """

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Encode on all processes, write on one."""
        teacher = cast(Tuned, pl_module)
        vectors = teacher.class_vectors()
        if not trainer.is_global_zero:
            return
        teacher.tuned_prompts().save(folder / PROMPTS_FILE)
        vectors.save(folder / CLASS_VECTORS_FILE)
        inform(
            f"class vectors of {len(vectors.class_names)} classes: {folder / CLASS_VECTORS_FILE}"
        )
        _log_result(trainer, folder / CLASS_VECTORS_FILE)


class SaveClassifier(Handover):
    """Copies the class vectors into the run's folder, and writes the classifier after stage 2.

    The copy is the teacher's file, unchanged; scales and biases of several labels are in the
    classifier and the checkpoint.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the class vectors: testing a checkpoint needs them and the weights of its CLIP."""
        # report problems with validation images or files now, not after the last epoch
        domain_of(trainer).val_dataloader()
        if trainer.is_global_zero:
            cast(Distilled, pl_module).vectors.save(
                Path(trainer.default_root_dir) / CLASS_VECTORS_FILE
            )

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Make its companions on all processes, write on one."""
        classifier = cast(Distilled, pl_module).classifier(domain_of(trainer).decoding)
        classifier = classifier.to(pl_module.device)
        companions = resolve_name(_MAKE_COMPANIONS)(trainer, classifier)
        if not trainer.is_global_zero:
            return
        classifier.save(folder / CLASSIFIER_FOLDER, companions, folder)
        inform(f"classifier: {folder / CLASSIFIER_FOLDER}")
        _log_result(trainer, folder / CLASSIFIER_FOLDER)
