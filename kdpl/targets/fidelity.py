"""Fidelity: agreement of a student with its target on unseen unlabelled images."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from kdpl.data.augmentation import NoAugmentation
from kdpl.data.batches import UnlabeledBatch
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.domain import domain_of
from kdpl.data.loader import LazyLoader
from kdpl.data.pool import UnlabeledPool
from kdpl.errors import ConfigError
from kdpl.metrics import FIDELITY, TARGET_KL, UNSEEN
from kdpl.module import ClassifyingModule, evaluating
from kdpl.runtime.resizing import Resizing
from kdpl.targets.held_out_pool import FEWEST, too_small
from kdpl.targets.plan import Plan
from kdpl.tasks import agreement_of


class Distilling(Protocol):
    """Methods of a student, whose module imports those of its plan."""

    plan: Plan | None

    def plan_fit(self, holds_out: bool) -> None:
        """Plan the fit."""

    def load_for_training(self) -> None:
        """Load the teacher."""

    def target_logits(self, batch: UnlabeledBatch) -> Tensor:
        """Return logits of the target distributions, [B, C]."""


class Fidelity(Callback):
    """Holds some unlabelled images out of distillation, and compares student and target on them.

    Logs ``val/fidelity``, the share of these images with the same predicted class, and ``val/kl``,
    the mean of KL(target ‖ student) in nats, in each epoch with validation, or that would have
    validation if there were labelled images. ``held_out_pool.py`` chooses the images. With several
    labels per image, fidelity is the mean over classes of the images with the class in both
    predictions, as a share of the images with the class in either.

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
        if images < 2 * FEWEST:
            raise too_small(images, FEWEST)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise a ConfigError for a teacher's fit."""
        if stage == "fit" and cast(ClassifyingModule, pl_module).needs.split != "unlabeled":
            raise ConfigError(
                f"{type(pl_module).__name__} has no target to compare it with on unlabelled "
                "images: give Fidelity to stage 2 alone, with run --student fidelity"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plan the fit with images held out, before the student would plan it without."""
        cast(Distilling, pl_module).plan_fit(holds_out=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the targets of this process's share of the images."""
        student = cast(Distilling, pl_module)
        if student.plan is None:
            return
        teacher = cast(ClassifyingModule, pl_module).needs.teacher
        if student.plan.runs_teacher:
            student.load_for_training()

        # on the CPU
        self._epoch, self._targets = -1, []
        for batch in _loader(trainer, student.plan.pool, teacher):
            there = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                self._targets.append(student.target_logits(there).float().cpu())
        self._batches = _loader(trainer, student.plan.pool)

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

        # agreements, nats and images of this process, summed over all below
        none = torch.zeros(0, len(domain_of(trainer).class_names), device=student.device)
        counts = student.task.agreements(none, none)
        sums = torch.zeros(2, device=student.device)
        with evaluating(student):
            for batch, target in zip(self._batches or (), self._targets, strict=True):
                with trainer.precision_plugin.forward_context():
                    there = student.transfer_batch_to_device(batch, student.device, 0)
                    logits = student.batch_logits(there).float()
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


def _loader(
    trainer: Trainer, pool: UnlabeledPool, teacher: Resizing | None = None
) -> DataLoader[UnlabeledBatch]:
    data, student = domain_of(trainer), cast(ClassifyingModule, trainer.lightning_module)
    images, needs = pool.images.take(pool.held_out), student.needs
    view = replace(data.view(needs.resizing), augmentation=NoAugmentation())
    # of stored views, the first is as in evaluation
    stored = min(needs.stored_views, 1)
    dataset = UnlabeledImages(images, view, pool.held_out, teacher, stored_views=stored)
    keys = [(i, 0) for i in range(trainer.global_rank, len(images), trainer.world_size)]
    num_workers = 0 if stored else data.num_workers
    return LazyLoader(dataset, keys, data.eval_batch_size, num_workers)
