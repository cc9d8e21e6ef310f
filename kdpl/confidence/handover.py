"""The companions of a classifier, made when its student is finished."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from kdpl.callbacks.results import gather
from kdpl.classifier import Classifier
from kdpl.classifier.companion import Companion, companion_kinds
from kdpl.confidence.evidence import Evidence, HeldOut, LearnedCompanion
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.domain import domain_of
from kdpl.data.inference import infer
from kdpl.errors import DataError
from kdpl.tasks import Predicted

# how many unlabelled images to sample as the reference for what is normal
_LEAST_IMAGES, _IMAGES_PER_CLASS, _MOST_IMAGES = 2000, 10, 10_000


def make_companions(trainer: Trainer, classifier: Classifier) -> list[Companion]:
    """Make the companions of a classifier: entry point of ``kdpl.handover``.

    Validation images are classified on all processes; the companions are made on the first.
    """

    def classify(images: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.encoder(images)
        return features, classifier.logits(features)

    data = domain_of(trainer)
    found = on_validation_images(trainer, classify, classifier.head.class_vectors.device)
    if not trainer.is_global_zero:
        return []
    held_out = None
    if found is not None:
        counted, sampled = data.bounding_images()
        features, logits, labels = (column[counted] for column in found)
        held_out = HeldOut(features, logits, labels, sampled)
    pool = pool_of(classifier, data)
    kept = [each for source, each in pool if source not in data.selection.left_out]
    evidence = Evidence(
        Path(trainer.default_root_dir),
        classifier.vectors,
        classifier.logit_scale,
        held_out,
        [each for _, each in pool],
        kept,
        trainer.global_step > 0,
    )
    kinds = (k for k in companion_kinds().values() if issubclass(k, LearnedCompanion))
    made = (kind.made_from(evidence) for kind in kinds)
    return [companion for companion in made if companion is not None]


def on_validation_images(
    trainer: Trainer, network: Callable[[Tensor], Sequence[Tensor]], device: torch.device
) -> list[Tensor] | None:
    """Return a network's outputs for the validation images of all processes, and their labels.

    They are on the CPU, in the order of the images, each [N, …]; None without any image.
    """
    own = []
    for outputs, batch in infer(network, domain_of(trainer).val_dataloader(), device):
        columns = [*(each.float() for each in outputs), batch.labels, batch.indices]
        own.append([column.cpu() for column in columns])
    # also where this process has no image: the others wait for it
    parts = gather(own, trainer.world_size)
    if not parts:
        return None
    *columns, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    # a sampler may give an image to several processes
    order = np.unique(indices, return_index=True)[1]
    return [column[order] for column in columns]


def pool_of(classifier: Classifier, data: DomainDataModule) -> list[tuple[str, Predicted]]:
    """Return a sample of the unlabelled images, also of those left out, and their predictions.

    It is empty if there are none.
    """
    if not (data.splits.train or data.splits.unlabeled):
        return []
    count = min(max(_LEAST_IMAGES, _IMAGES_PER_CLASS * len(classifier.class_names)), _MOST_IMAGES)
    predictions = classifier.predictions(data.pool.sample(count), data.splits.open_image)
    return [(source, each) for source, each in predictions if not isinstance(each, DataError)]
