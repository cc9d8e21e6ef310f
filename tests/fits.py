"""Fits by one process and by several, and notes of what each of them saw."""

import hashlib
import os

import torch
import world
from lightning.pytorch import Callback
from torch import nn

from kdpl import DomainDataModule
from kdpl.clip import ClipConfig
from kdpl.prompts import PromptConfig
from kdpl.student import StudentDistillation
from kdpl.teacher import TeacherPromptTuning

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class WithoutBatchNorm(StudentDistillation):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.encoder.projector.layers[1] = nn.Identity()


def teacher():
    torch.manual_seed(0)
    prompts = PromptConfig(2, 3)
    return TeacherPromptTuning(ClipConfig("test-teacher", world.TAG), vision_prompts=prompts, text_prompts=prompts)


def student(folder, kind=WithoutBatchNorm, model="test-student", **options):
    torch.manual_seed(0)
    settings = {"vision_prompts": PromptConfig(2, 3), "kd_weight": 20, **options}
    return kind(ClipConfig(model, world.TAG), str(folder), **settings)


def digits(batch_size, **options):
    all_of_them = {"shots": None, "val_shots": None}
    settings = {"augmentation": "light_affine", "num_workers": 0, "eval_batch_size": 40, **all_of_them, **options}
    return DomainDataModule("digits", batch_size=batch_size, **settings)


class Notes(Callback):
    """Writes notes of its process to a file, as nothing else comes back from a forked process.

    Of each step the loss, the learning rate, a digest of each view, and the running statistics of batch norms after it;
    at the end the metrics, and those statistics.
    """

    def __init__(self, folder):
        self.folder = folder
        self.steps, self.statistics = [], []

    def on_train_batch_start(self, trainer, _, batch, *__):
        views = [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:12] for image in batch[0]]
        self.steps.append({"lr": trainer.optimizers[0].param_groups[0]["lr"], "views": views})

    def on_train_batch_end(self, _, pl_module, outputs, *__):
        self.steps[-1]["loss"] = outputs["loss"].item()
        self.statistics.append({n: t.clone() for n, t in pl_module.named_buffers() if "running" in n})

    def on_train_end(self, trainer, pl_module):
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        seen = {"steps": self.steps, "metrics": metrics, "statistics": self.statistics}
        torch.save({**seen, **self.more(trainer)}, self.folder / f"{trainer.global_rank}.pt")

    def more(self, _):
        return {}


def fit(module, data, folder, processes=1, notes=Notes, epochs=2, steps=10, **options):
    """Fit with notes in a new folder; returns those of each process."""
    folder.mkdir()
    # commands leave it behind, and with it Lightning seeds several processes again, but not one alone
    os.environ.pop("PL_GLOBAL_SEED", None)
    several = {"devices": processes, "strategy": "ddp_fork"} if processes > 1 else {}
    settings = {"limit_train_batches": steps, "limit_val_batches": 1.0, "use_distributed_sampler": False, **options}
    trainer = world.quiet_trainer(folder, epochs, callbacks=[notes(folder)], **several, **settings)
    trainer.fit(module, datamodule=data)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]
