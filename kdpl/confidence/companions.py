"""Companions of a classifier, made when its student is finished."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from kdpl.callbacks.results import gather
from kdpl.classifier import Classifier
from kdpl.classifier.companion import Companion, companion_kinds
from kdpl.confidence.student_outputs import LearnedCompanion, StudentOutputs, ValidationOutputs
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.domain import domain_of
from kdpl.data.inference import infer
from kdpl.errors import DataError
from kdpl.module import ClassifyingModule
from kdpl.tasks import Predicted

# numbers of unlabelled images to sample, as the reference for what is usual
_LEAST_IMAGES, _IMAGES_PER_CLASS, _MOST_IMAGES = 2000, 10, 10_000


def make_companions(trainer: Trainer, classifier: Classifier) -> list[Companion]:
    """Make the companions of a classifier."""

    def classify(images: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.encoder(images)
        return features, classifier.logits(features)

    data = domain_of(trainer)
    columns = on_validation_images(trainer, classify, classifier.head.class_vectors.device)
    if not trainer.is_global_zero:
        return []
    validation = None
    if columns is not None:
        counted, sampled = data.bounding_images()
        features, logits, labels = (column[counted] for column in columns)
        validation = ValidationOutputs(features, logits, labels, sampled)

    pool = pool_of(classifier, data, cast(ClassifyingModule, trainer.lightning_module))
    outputs = StudentOutputs(
        Path(trainer.default_root_dir),
        classifier.vectors,
        classifier.logit_scale,
        validation,
        [predicted for source, predicted in pool if source not in data.training_pool.left_out],
    )
    kinds = (kind for kind in companion_kinds().values() if issubclass(kind, LearnedCompanion))
    companions = [kind.made_from(outputs) for kind in kinds]
    return [companion for companion in companions if companion is not None]


def on_validation_images(
    trainer: Trainer, network: Callable[[Tensor], Sequence[Tensor]], device: torch.device
) -> list[Tensor] | None:
    """Return a network's outputs and the labels of all processes' validation images.

    They are on the CPU, in the order of the images, each [N, …]; None without any image.
    """
    batches = []
    for outputs, batch in infer(network, domain_of(trainer).validation_images(), device):
        columns = [*(output.float() for output in outputs), batch.labels, batch.indices]
        batches.append([column.cpu() for column in columns])
    # a process without images takes part, since the rest wait for it
    parts = gather(batches, trainer.world_size)
    if not parts:
        return None
    *columns, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    # a sampler may repeat an image on several processes
    order = np.unique(indices, return_index=True)[1]
    return [column[order] for column in columns]


def pool_of(
    classifier: Classifier, data: DomainDataModule, module: ClassifyingModule
) -> list[tuple[str, Predicted]]:
    """Return a sample of the unlabelled images, before any filter, with their predictions.

    They are made of the features that the module has stored, or of the images.
    """
    if not (data.splits.train or data.splits.unlabeled):
        return []
    count = min(max(_LEAST_IMAGES, _IMAGES_PER_CLASS * len(classifier.class_names)), _MOST_IMAGES)
    indices = data.pool.sample(count)
    sources, features = data.pool.images.take(indices), module.stored_features(indices)
    if features is not None:
        decided = classifier.decide(features, classifier.logits(features))
        return list(zip(sources, decided, strict=True))
    predictions = classifier.predictions(sources, data.splits.open_image)
    return [(source, p) for source, p in predictions if not isinstance(p, DataError)]
