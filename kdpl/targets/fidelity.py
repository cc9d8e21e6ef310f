"""Fidelity: agreement of a student with its target on unseen unlabelled images."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from kdpl.data.augmentation import NoAugmentation
from kdpl.data.batches import UnlabeledBatch
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.domain import domain_of
from kdpl.data.inference import infer
from kdpl.data.loader import LazyLoader
from kdpl.data.names import Names, places
from kdpl.data.pool import Selection, UnlabeledPool
from kdpl.data.sampling import generator
from kdpl.errors import ConfigError, DataError
from kdpl.metrics import FIDELITY, TARGET_KL, UNSEEN
from kdpl.module import ClassifyingModule, evaluating
from kdpl.runtime.messages import inform
from kdpl.runtime.resizing import Resizing
from kdpl.tasks import agreement_of

# share of images to hold out, and the smallest and largest number
_SHARE, _FEWEST, _MOST = 0.05, 100, 5000


class Fidelity(Callback):
    """Holds some unlabelled images out of distillation, and compares student and target on them.

    Logs ``val/fidelity``, the share of these images with the same predicted class, and ``val/kl``,
    the mean of KL(target ‖ student) in nats, in each epoch with validation, or that would have
    validation if there were labelled images. ``hold_out`` chooses the images. With several labels
    per image, fidelity is the mean over classes of the images with the class in both predictions,
    as a share of the images with the class in either.

    Both see the evaluation transform. The targets are computed once, before the first step. This
    loads the teacher if the targets depend on it, even if its features of other views are cached.
    """

    def __init__(self) -> None:
        self._epoch = -1  # the last measured epoch
        self._targets: list[Tensor] = []
        self._batches: DataLoader[UnlabeledBatch] | None = None

    @classmethod
    def require_possible(cls, settings: Mapping[str, Any], data: DomainDataModule) -> None:
        """Raise a DataError for a pool that is too small even if all its images are usable."""
        images = round(len(data.reading.listed.pool) * data.unlabeled_share)
        if images < 2 * _FEWEST:
            raise _too_small(images, _FEWEST)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise a ConfigError for a teacher's fit."""
        if stage == "fit" and cast(ClassifyingModule, pl_module).needs.split != "unlabeled":
            raise ConfigError(
                f"{type(pl_module).__name__} has no target to compare it with on unlabelled "
                "images: give Fidelity to stage 2 alone, with run --student fidelity"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the targets of this process's share of the images."""
        student: Any = pl_module  # the module of stage 2, which imports this file
        teacher, encode = student.teacher.module, student.preparation().encoder()
        uses_teacher = student.target.uses_teacher
        resizing = teacher.vectors.preprocessing.resizing if uses_teacher else None

        # on the CPU
        self._epoch, self._targets = -1, []
        for batch in _loader(trainer, resizing):
            predicted = torch.empty(0)
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                if uses_teacher:
                    other = batch.teacher_images
                    predicted = teacher.logits(encode(batch.images if other is None else other))
                target = student.target.logits(predicted, batch.indices.to(student.device))
            self._targets.append(target.float().cpu())
        self._batches = _loader(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure after the accuracies on labelled images."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure without labelled images, after as many epochs as validation would run."""
        due = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        if due and self._epoch != trainer.current_epoch:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch = trainer.current_epoch
        student = cast(ClassifyingModule, pl_module)

        def classify(images: Tensor) -> Tensor:
            with trainer.precision_plugin.forward_context():
                return student.class_logits(images).float()

        # agreements, nats and images of this process, summed over all below
        none = torch.zeros(0, len(domain_of(trainer).class_names), device=student.device)
        counts = student.task.agreements(none, none)
        sums = torch.zeros(2, device=student.device)
        outputs = infer(classify, self._batches or (), student.device)
        with evaluating(student):
            for (logits, _), target in zip(outputs, self._targets, strict=True):
                target = target.to(logits.device)
                # undo the division by images and classes
                nats = student.task.divergence(logits, target) * logits.numel()
                counts += student.task.agreements(logits, target)
                sums += torch.stack([nats, nats.new_tensor(len(logits))])

        # over all processes
        counts = trainer.strategy.reduce(counts, reduce_op="sum")
        nats, images = trainer.strategy.reduce(sums, reduce_op="sum")

        student.log(FIDELITY, agreement_of(counts), prog_bar=True)
        student.log_dict({TARGET_KL: nats / images, UNSEEN: images})


def _loader(trainer: Trainer, teacher: Resizing | None = None) -> DataLoader[UnlabeledBatch]:
    data, student = domain_of(trainer), cast(ClassifyingModule, trainer.lightning_module)
    unseen, resizing = data.selection.unseen, student.needs.resizing
    view = replace(data.view(resizing), augmentation=NoAugmentation())
    images = UnlabeledImages(data.pool.images.take(unseen), view, unseen, teacher)
    keys = [(i, 0) for i in range(trainer.global_rank, len(unseen), trainer.world_size)]
    return LazyLoader(images, keys, data.eval_batch_size, data.num_workers)


def hold_out(pool: UnlabeledPool, labeled: Iterable[str]) -> Selection:
    """Hold 5 % of the images, from 100 to 5,000 drawn by the seed, out of distillation.

    ``labeled`` images are not drawn, under any name. A DataError if it would be more than half of
    the images.
    """
    selection, labeled_paths = pool.selection, frozenset(places(Names.of(labeled)))
    images = len(selection.targeted)
    wanted = min(max(round(_SHARE * images), _FEWEST), _MOST)

    # enough images even if all labelled images are drawn first
    order = generator(pool.seed, "unseen").permutation(selection.targeted)
    drawn = order[: wanted + len(labeled_paths)]
    unlabeled = [path not in labeled_paths for path in places(selection.images.take(drawn))]
    unseen = drawn[unlabeled][:wanted]
    if 2 * wanted > images or len(unseen) < wanted:
        raise _too_small(images, wanted)
    inform(f"fidelity: {len(unseen)} unlabelled images are held out of distillation")
    return replace(selection, unseen=np.sort(unseen))


def _too_small(images: int, wanted: int) -> DataError:
    return DataError(
        f"the pool has {images} images, too few to hold {wanted} without a label out of "
        "distillation, at most half of them: add unlabelled images, or leave "
        "kdpl.targets.fidelity.Fidelity out of trainer.callbacks"
    )
