"""Callback for several labels: thresholds from validation images, and the tables of a test."""

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from kdpl.callbacks.handover import Handover
from kdpl.callbacks.results import gather
from kdpl.confidence.companions import on_validation_images
from kdpl.data.domain import domain_of
from kdpl.module import ClassifyingModule, EvalOutput, evaluating
from kdpl.multilabel.metrics import choose_thresholds, class_scores, of_expected_counts
from kdpl.multilabel.scores import logits_of_pool
from kdpl.multilabel.task import MultiLabel
from kdpl.runtime.files import write_rows
from kdpl.runtime.messages import inform
from kdpl.runtime.run_folder import PREDICTIONS_FILE
from kdpl.tasks import SEPARATOR

PER_CLASS_FILE = "per_class.csv"
"""Scores of each class on the test images, in a run's folder."""


def callbacks(module: LightningModule) -> list[Callback]:
    """Return the callback of a fit or test."""
    return [SeveralLabels()] if isinstance(module, ClassifyingModule) else []


class SeveralLabels(Handover):
    """Chooses thresholds, and writes a test's predictions; idle for images of one class each.

    The threshold of a class maximises F1 on the validation images, for the student at the end of
    its fit or for the module under test. Novel classes get the mean over the base classes. Without
    validation images, thresholds follow from unlabelled images, see ``of_expected_counts``.
    """

    warns = False  # the classifier's handover does

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def write(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        """Choose the thresholds of the classifier before it is written."""
        module = cast(ClassifyingModule, pl_module)
        # a teacher hands over no thresholds
        if module.needs.split == "unlabeled":
            _choose(trainer, module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the thresholds of the test's metrics, once the scores of classes have started."""
        self._rows = []
        _choose(trainer, cast(ClassifyingModule, pl_module))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, *_: object
    ) -> None:
        """Keep index, logits and labels of each image."""
        if isinstance(cast(ClassifyingModule, pl_module).task, MultiLabel):
            row = cast(EvalOutput, outputs)
            self._rows.append((row["indices"].cpu(), row["logits"].cpu(), row["labels"].cpu()))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the predictions of all processes; write them, and the scores of each class."""
        task = cast(ClassifyingModule, pl_module).task
        parts = gather(self._rows, trainer.world_size)
        if not isinstance(task, MultiLabel) or not trainer.is_global_zero or not parts:
            return
        indices, logits, targets = (torch.cat(column) for column in zip(*parts, strict=True))
        data, folder = domain_of(trainer), Path(trainer.default_root_dir)
        names = data.class_names

        def joined(labels: Iterable[int]) -> str:
            return SEPARATOR.join(names[label] for label in labels)

        columns = ("index", "source", "labels", "predicted", "probabilities")
        rows: list[tuple[object, ...]] = [columns]
        decided, probabilities = task.labels(logits), task.probabilities(logits)
        for row in indices.argsort().tolist():
            index = int(indices[row])
            record = data.splits.test[index]
            predicted = joined(torch.nonzero(decided[row]).flatten().tolist())
            numbers = SEPARATOR.join(f"{number:.6f}" for number in probabilities[row].tolist())
            labels = joined(record.labels)
            rows.append((index, record.source, labels, predicted, numbers))
        write_rows(folder / PREDICTIONS_FILE, rows)

        scores = class_scores(logits, targets, task.thresholds)
        thresholds = task.thresholds_of(len(names))
        table: list[tuple[object, ...]] = [
            ("class", "positives", "threshold", "ap", "precision", "recall", "f1")
        ]
        for label, name in enumerate(names):
            counts = int(scores.positives[label]), thresholds[label]
            table.append((name, *counts, *scores.cells(label, digits=6)))
        write_rows(folder / PER_CLASS_FILE, table)


def _choose(trainer: Trainer, module: ClassifyingModule) -> None:
    task, data = module.task, domain_of(trainer)
    if not isinstance(task, MultiLabel):
        return
    with evaluating(module):
        outputs = on_validation_images(
            trainer, lambda images: [module.evaluation_logits(images)], module.device
        )
    if outputs is not None:
        # labels of novel classes are not used
        names = data.tuning_class_names
        logits, targets = (output[:, : len(names)] for output in outputs)
        thresholds = choose_thresholds(logits, targets)
        mean = float(torch.tensor(thresholds).mean())
        thresholds += [mean] * (len(data.class_names) - len(names))
        has_image = zip(names, targets.any(dim=0).tolist(), strict=True)
        if missing := [name for name, has in has_image if not has]:
            inform(
                f"no validation image has the class {missing[0]!r}"
                f"{f' and {len(missing) - 1} others' if len(missing) > 1 else ''}: threshold 0.5"
            )
    elif data.splits.train or data.splits.unlabeled:
        inform(
            "there are no validation images: thresholds are chosen so that as many unlabelled "
            "images have a class as its probabilities add up to"
        )
        thresholds = of_expected_counts(logits_of_pool(module))
    else:
        inform("there are no validation images, so that the threshold of each class is 0.5")
        return

    # the test's metrics take them over
    module.task = MultiLabel(thresholds)
    module.test_metrics = module.task.accuracy(data.num_base).to(module.device)
