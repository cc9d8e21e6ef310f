"""Results of a finished stage: class vectors after stage 1, the classifier after stage 2."""

from abc import abstractmethod
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from kdpl.callbacks.results import gather
from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier, Predicted
from kdpl.data.decoding import Decoding
from kdpl.doubt.held_out import HeldOutScores, classify
from kdpl.doubt.unknown import MIN_IMAGES, Unknown, farthest, other_than
from kdpl.errors import ArtifactError, DataError
from kdpl.logging.wandb_logger import CLASS_VECTORS, CLASSIFIER, TEACHER, artifact_name, log_input, log_output
from kdpl.metrics import ACCURACY_TITLES, val_key
from kdpl.runtime.messages import inform, warn
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER, NEGATIVE_VECTORS_FILE, PROMPTS_FILE
from kdpl.watch.image_sample import MAX_IMAGES, ImageSample

# unlabelled images whose features say what is usual
_LEAST_IMAGES, _IMAGES_PER_CLASS, _MOST_IMAGES = 2000, 10, 10_000


class _Handover(Callback):
    """Writes a result once a fit has reached its planned end, not when it was interrupted."""

    def __init__(self) -> None:
        self._written = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write while the model is still on its device, or after a fit without epochs or resumed after its last one."""
        if self._written:
            return
        self._written = True
        if not _is_finished(trainer):
            warn("training ended early: rerun the same command to resume; nothing was handed over")
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
    early = any(isinstance(c, EarlyStopping) and c.stopped_epoch > 0 for c in trainer.callbacks)  # type: ignore[attr-defined]
    return epochs or steps or early


class FreezeClassVectors(_Handover):
    """At the end of stage 1, encodes all class names with the tuned prompts and writes them to the run's folder.

    Writes ``negative_vectors.safetensors``, text features of words for other things, ``prompts.safetensors`` and then
    ``class_vectors.safetensors``, each atomically, from one process. The last stands for a finished stage 1. From here
    on no text tower runs (PromptKD, arXiv 2403.02781, section 3.2).
    """

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Encode on all processes, write on one."""
        teacher: Any = pl_module
        vectors: ClassVectors = teacher.class_vectors()
        if not trainer.is_global_zero:
            return
        teacher.negative_vectors().save(folder / NEGATIVE_VECTORS_FILE)
        teacher.tuned_prompts().save(folder / PROMPTS_FILE)
        vectors.save(folder / CLASS_VECTORS_FILE)
        inform(f"class vectors of {len(vectors.class_names)} classes: {folder / CLASS_VECTORS_FILE}")
        metadata = {**_about(vectors), **_val_accuracies(trainer)}
        name = artifact_name(TEACHER, vectors.teacher)
        log_output(trainer.loggers, TEACHER, name, folder / PROMPTS_FILE, metadata)
        metadata |= {**vectors.fields(), "made_with": name}
        name = artifact_name(CLASS_VECTORS, vectors.teacher)
        log_output(trainer.loggers, CLASS_VECTORS, name, folder / CLASS_VECTORS_FILE, metadata)


class SaveClassifier(_Handover):
    """Copies the text features that stage 2 needs into the run's folder, and at its end writes the classifier."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Copy class vectors and negative vectors: checkpoints, and a student of this one, need nothing else."""
        # what is wrong with validation images or a file is an error now, and not after the last epoch
        _val_batches(trainer)
        if trainer.is_global_zero:
            folder, vectors = Path(trainer.default_root_dir), pl_module.shared_vectors
            vectors.save(folder / CLASS_VECTORS_FILE)
            name = artifact_name(CLASS_VECTORS, vectors.teacher)
            log_input(trainer.loggers, CLASS_VECTORS, name, folder / CLASS_VECTORS_FILE, _about(vectors))
            self._negatives = _copy_negatives(pl_module, folder)

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Classify the validation images on all processes, write on one."""
        student: Any = pl_module
        data: Any = getattr(trainer, "datamodule", None)
        classifier: Classifier = student.classifier(getattr(data, "decoding", Decoding())).to(pl_module.device)
        found = _held_out(trainer, classifier)
        if not trainer.is_global_zero:
            return
        if found is not None:
            features, logits, labels = found
            classifier.held_out = HeldOutScores.of(logits, labels)
        pool = _pool(classifier, data)
        usual = [each for source, each in pool if source not in data.left_out]
        classifier.unknown = _unknown(classifier, usual, found and features, self._negatives)
        sample = None
        # of a classifier that learned from it
        if pool and trainer.global_step:
            sample = ImageSample.of((each for _, each in pool), classifier.class_names).draw(MAX_IMAGES)
        classifier.save(folder / CLASSIFIER_FOLDER, sample)
        inform(f"classifier: {folder / CLASSIFIER_FOLDER}")
        metadata = {
            **_about(classifier.vectors),
            **_val_accuracies(trainer),
            "clip": asdict(classifier.clip),
            "made_with": artifact_name(CLASS_VECTORS, classifier.vectors.teacher),
        }
        log_output(trainer.loggers, CLASSIFIER, None, folder / CLASSIFIER_FOLDER, metadata)


def _copy_negatives(student: Any, folder: Path) -> ClassVectors | None:
    """Copy the teacher's negative vectors; returns those of words that are far from all classes, None without them."""
    vectors, file = student.vectors, student.teacher_folder / NEGATIVE_VECTORS_FILE
    # those of the teacher's text tower say nothing to a student with text features of its own
    if not file.is_file() or vectors is not student.shared_vectors:
        return None
    found = ClassVectors.load(file)
    if found.teacher != vectors.teacher:
        raise ArtifactError(
            f"{file} was made by another tuned teacher than the class vectors: remove it, or run stage 1 again"
        )
    own = other_than(vectors.class_names, found.class_names, str(file))
    found.save(folder / NEGATIVE_VECTORS_FILE)
    if not own:
        return None
    kept = [own[i] for i in farthest(found.vectors[own], vectors.vectors)]
    return replace(found, vectors=found.vectors[kept], class_names=tuple(found.class_names[i] for i in kept))


def _val_batches(trainer: Trainer) -> Any:
    """The batches of validation images of this process, which may be none."""
    data: Any = getattr(trainer, "datamodule", None)
    # that of LightningDataModule raises
    has_split = data is not None and type(data).val_dataloader is not LightningDataModule.val_dataloader
    return data.val_dataloader() if has_split else []


def _held_out(trainer: Trainer, classifier: Classifier) -> tuple[Tensor, Tensor, Tensor] | None:
    """Features, logits and labels of the validation images of all processes, in their order; None without any."""
    batches, vectors = _val_batches(trainer), classifier.head.class_vectors

    def network(images: Tensor) -> Tensor:
        features = classifier.encoder(images)
        return torch.cat([features, classifier.logits(features)], dim=1)

    own = [[each.cpu() for each in classify(network, batches, vectors.device)]] if batches else []
    # also where this process has no image: the others wait for it
    parts = gather(own, trainer.world_size)
    if not parts:
        return None
    found, labels, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    # a sampler may give an image to several processes
    order = np.unique(indices, return_index=True)[1]
    features, logits = found[order].tensor_split([vectors.shape[1]], dim=1)
    return features, logits, labels[order]


def _pool(classifier: Classifier, data: Any) -> list[tuple[str, Predicted]]:
    """A sample of the unlabelled images, those left out included, and their predictions; none where there are none."""
    if not hasattr(data, "pool_sample"):
        return []
    count = min(max(_LEAST_IMAGES, _IMAGES_PER_CLASS * len(classifier.class_names)), _MOST_IMAGES)
    found = classifier.predictions(data.pool_sample(count), data.splits.open_image)
    return [(source, each) for source, each in found if not isinstance(each, DataError)]


def _unknown(
    classifier: Classifier, pool: list[Predicted], held_out: Tensor | None, negatives: ClassVectors | None
) -> Unknown | None:
    """What scores images as being of none of the classes; None for a few unlabelled images."""
    if len(pool) < MIN_IMAGES:
        return None
    features, vectors = torch.stack([each.embedding for each in pool]), classifier.head.class_vectors.cpu()
    known = None if held_out is None else held_out.cpu()
    others, words = (None, ()) if negatives is None else (negatives.vectors, negatives.class_names)
    return Unknown.fit(features, vectors, classifier.logit_scale, known, others, words)


def _about(vectors: ClassVectors) -> dict[str, Any]:
    return {"teacher": vectors.teacher, "num_classes": len(vectors.class_names)}


def _val_accuracies(trainer: Trainer) -> dict[str, float]:
    keys = {val_key(name) for name in ACCURACY_TITLES}
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name in keys}
