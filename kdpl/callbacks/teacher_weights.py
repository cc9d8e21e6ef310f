"""Weights of several teachers, chosen by labelled validation images before a student's first epoch."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.callbacks.teacher_cache import teacher_encoder
from kdpl.classification import domain_of
from kdpl.errors import DataError
from kdpl.runtime.files import write_text
from kdpl.runtime.messages import inform
from kdpl.runtime.run_folder import WEIGHTS_FILE
from kdpl.targets.mixture import likeliest_weights


class WeighTeachers(Callback):
    """Weighs the teachers so that their mixture has the least log loss on the validation images of the base classes.

    The weights are written to ``teacher_weights.json`` in the run's folder, with each teacher's own accuracy and log
    loss (in nats), and are part of checkpoints, so that a resumed run keeps them.
    """

    def __init__(self) -> None:
        self.weights: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a domain without validation images whose labels may be seen."""
        labeled = trainer.datamodule.splits.val  # type: ignore[attr-defined]
        if stage == "fit" and not any(record.label < _num_tuned(pl_module) for record in labeled):
            raise DataError(
                "mixture: validation needs labelled validation images, and this run has none: set mixture to mean or "
                "confidence"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the weights, on all processes together, unless a checkpoint has them."""
        student: Any = pl_module
        if not self.weights:
            each = [_validate(trainer, student, number) for number in range(len(student.teachers))]
            likelihoods = torch.stack([likelihood for likelihood, _ in each])
            self.weights = likeliest_weights(likelihoods)
            mixed = likelihoods.new_tensor(self.weights) @ likelihoods
            about: dict[str, Any] = {"teachers": [], "log_loss": _log_loss(mixed), "images": len(mixed)}
            for teacher, weight, (likelihood, correct) in zip(student.teachers, self.weights, each, strict=True):
                accuracy, loss = correct.mean().item(), _log_loss(likelihood)
                about["teachers"] += [
                    {"run": str(teacher.folder), "weight": weight, "val_acc": accuracy, "log_loss": loss}
                ]
                known = f"val_acc {100 * accuracy:.1f} %, log loss {loss:.3f}"
                inform(f"teacher {teacher.folder}: weight {weight:.3f} ({known})")
            inform(f"mixture of these teachers: log loss {_log_loss(mixed):.3f} on {len(mixed)} validation images")
            if trainer.is_global_zero:
                write_text(Path(trainer.default_root_dir) / WEIGHTS_FILE, json.dumps(about, indent=2))
        student.teacher.module.weights = self.weights

    def state_dict(self) -> dict[str, Any]:
        """Return the weights."""
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the weights of a checkpoint."""
        self.weights = state_dict["weights"]


def _num_tuned(student: LightningModule) -> int:
    return len(domain_of(student).tuning_class_names)


def _log_loss(likelihood: Tensor) -> float:
    return -likelihood.log().mean().item()


@torch.no_grad()
def _validate(trainer: Trainer, student: Any, number: int) -> tuple[Tensor, Tensor]:
    """A teacher's probability of the label of each validation image of the base classes, and if it is right, [N]."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    teacher, encode = student.teachers[number], teacher_encoder(trainer, student, number)
    processes = (trainer.global_rank, trainer.world_size)
    loader = data.evaluation_dataloader_for("val", teacher.vectors.preprocessing.resizing, *processes)
    # rows: labels that may be seen, their probabilities, correct predictions
    found = torch.zeros(3, len(loader.dataset), device=student.device)
    for images, of_batch, indices in loader:
        labels = of_batch.to(student.device)
        probabilities = teacher.logits(encode(images)).softmax(dim=1)
        likelihood = probabilities.gather(1, labels[:, None])[:, 0]
        correct = probabilities.argmax(dim=1) == labels
        found[:, indices] = torch.stack([(labels < _num_tuned(student)).float(), likelihood, correct.float()])
    found = trainer.strategy.reduce(found, reduce_op="sum").cpu().double()
    found = found[:, found[0] > 0]
    # in float32, a probability may be 0
    return found[1].clamp(min=1e-30), found[2]
