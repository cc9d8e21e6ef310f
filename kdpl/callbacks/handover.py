"""Results of a finished stage: class vectors after stage 1, the classifier after stage 2."""

from abc import abstractmethod
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from kdpl.callbacks.results import gather
from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.classifier.companion import Evidence, HeldOut, companion_kinds
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.decoding import Decoding
from kdpl.data.domain import domain_of
from kdpl.data.inference import infer
from kdpl.errors import DataError
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.messages import inform, warn
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER, PROMPTS_FILE
from kdpl.tasks import Predicted

# unlabelled images whose features say what is usual
_LEAST_IMAGES, _IMAGES_PER_CLASS, _MOST_IMAGES = 2000, 10, 10_000


class Handover(Callback):
    """Base of callbacks that write a result at the planned end of a fit, not on interruption."""

    def __init__(self) -> None:
        self._written = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write while the model is still on its device.

        Also write after a fit without epochs, or one resumed after its last epoch.
        """
        if self._written:
            return
        self._written = True
        if not _is_finished(trainer):
            self.ended_early()
            return
        self.write(trainer, pl_module, Path(trainer.default_root_dir))
        trainer.strategy.barrier("kdpl handover")

    on_fit_end = on_train_end

    def ended_early(self) -> None:
        """Warn that nothing is written; a room that writes beside a stage's result is silent."""
        warn("training ended early: rerun the same command to resume; nothing was handed over")

    @abstractmethod
    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Write into the run's folder; called on all processes."""


def _is_finished(trainer: Trainer) -> bool:
    epochs = trainer.max_epochs is not None and 0 <= trainer.max_epochs <= trainer.current_epoch
    steps = 0 <= trainer.max_steps <= trainer.global_step
    # early stopping is a planned end as well
    early = any(
        isinstance(each, EarlyStopping) and each.stopped_epoch > 0
        for each in trainer.early_stopping_callbacks
    )
    return epochs or steps or early


class _Teacher(Protocol):
    """The module of stage 1."""

    def class_vectors(self) -> ClassVectors: ...

    def tuned_prompts(self) -> TunedPrompts: ...


class _Student(Protocol):
    """The module of stage 2."""

    shared_vectors: ClassVectors

    def classifier(self, decoding: Decoding) -> Classifier: ...


class FreezeClassVectors(Handover):
    """Encodes all class names with the tuned prompts at the end of stage 1, into the run's folder.

    Writes ``prompts.safetensors`` and then ``class_vectors.safetensors``, each atomically, from one
    process. The last stands for a finished stage 1. From here on no text tower runs (PromptKD,
    arXiv 2403.02781, section 3.2).
    """

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Encode on all processes, write on one."""
        teacher = cast(_Teacher, pl_module)
        vectors = teacher.class_vectors()
        if not trainer.is_global_zero:
            return
        teacher.tuned_prompts().save(folder / PROMPTS_FILE)
        vectors.save(folder / CLASS_VECTORS_FILE)
        inform(
            f"class vectors of {len(vectors.class_names)} classes: {folder / CLASS_VECTORS_FILE}"
        )


class SaveClassifier(Handover):
    """Copies the class vectors into the run's folder, and writes the classifier after stage 2."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the class vectors: with them and its CLIP's weights, a checkpoint can be tested."""
        # what is wrong with validation images or a file is an error now, and not after the last
        # epoch
        domain_of(trainer).val_dataloader()
        if trainer.is_global_zero:
            cast(_Student, pl_module).shared_vectors.save(
                Path(trainer.default_root_dir) / CLASS_VECTORS_FILE
            )

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Classify the validation images on all processes, write on one."""
        data = domain_of(trainer)
        classifier = cast(_Student, pl_module).classifier(data.decoding).to(pl_module.device)
        held_out = _held_out(trainer, classifier)
        if not trainer.is_global_zero:
            return
        pool = _pool(classifier, data)
        kept = [each for source, each in pool if source not in data.pool.left_out]
        evidence = Evidence(
            folder,
            classifier.vectors,
            classifier.logit_scale,
            held_out,
            [each for _, each in pool],
            kept,
            trainer.global_step > 0,
        )
        made = (kind.made_from(evidence) for kind in companion_kinds().values())
        classifier.save(
            folder / CLASSIFIER_FOLDER, [companion for companion in made if companion is not None]
        )
        inform(f"classifier: {folder / CLASSIFIER_FOLDER}")


def _held_out(trainer: Trainer, classifier: Classifier) -> HeldOut | None:
    """Classify the validation images of all processes, in order; None without any."""

    def classify(images: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.encoder(images)
        return features, classifier.logits(features)

    own, batches = [], domain_of(trainer).val_dataloader()
    for (features, logits), batch in infer(classify, batches, classifier.head.class_vectors.device):
        own.append(
            [each.cpu() for each in (features.float(), logits.float(), batch.labels, batch.indices)]
        )

    # also where this process has no image: the others wait for it
    parts = gather(own, trainer.world_size)
    if not parts:
        return None
    features, logits, labels, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    # a sampler may give an image to several processes
    order = np.unique(indices, return_index=True)[1]
    return HeldOut(features[order], logits[order], labels[order])


def _pool(classifier: Classifier, data: DomainDataModule) -> list[tuple[str, Predicted]]:
    """Return a sample of the unlabelled images, also of those left out, and their predictions.

    It is empty if there are none.
    """
    if not (data.splits.train or data.splits.unlabeled):
        return []
    count = min(max(_LEAST_IMAGES, _IMAGES_PER_CLASS * len(classifier.class_names)), _MOST_IMAGES)
    predictions = classifier.predictions(data.pool.sample(count), data.splits.open_image)
    return [(source, each) for source, each in predictions if not isinstance(each, DataError)]
