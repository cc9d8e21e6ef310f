"""Callback that checks a tree of classes before training, and tests each of its levels."""

from pathlib import Path
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torchmetrics import MeanMetric

from kdpl.confidence.taxonomy.scores import FILE
from kdpl.confidence.taxonomy.tree import Taxonomy
from kdpl.data.domain import domain_of
from kdpl.metrics import LEVEL_PATH, level_accuracy, test_key
from kdpl.module import ClassifyingModule, EvalOutput
from kdpl.runtime.files import read_text, write_text
from kdpl.tasks import require_one_class


def callbacks(module: LightningModule) -> list[Callback]:
    """Return the callback for a tree of classes, in fits and tests."""
    return [Levels()] if isinstance(module, ClassifyingModule) else []


class Levels(Callback):
    """Copies the table of a tree into a run's folder, and logs a test's accuracy by level."""

    _taxonomy: Taxonomy | None
    _metrics: dict[str, MeanMetric]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the tree, or raise a DataError that says what is wrong with it."""
        data, folder = domain_of(trainer), Path(trainer.default_root_dir)
        self._taxonomy, self._metrics = None, {}
        writes = stage == "fit" and trainer.is_global_zero
        if data.classes.taxonomy is None:
            if writes:
                # left by a fit that ended before its first checkpoint
                (folder / FILE).unlink(missing_ok=True)
            return
        require_one_class(data.task, "a tree of classes")
        file = Path(data.classes.taxonomy).expanduser()
        self._taxonomy = Taxonomy.read(file, data.class_names)
        if writes:
            write_text(folder / FILE, read_text(file, "taxonomy"))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, *_: object
    ) -> None:
        """Count correct nodes at each level, from 1."""
        if self._taxonomy is None:
            return
        evaluated, task = cast(EvalOutput, outputs), cast(ClassifyingModule, pl_module).task
        nodes = self._taxonomy.best(task.probabilities(evaluated["logits"]))[1]
        correct = nodes == self._taxonomy.of_class[:, evaluated["labels"].cpu()].T
        shares = {LEVEL_PATH: correct.all(dim=1)}
        shares |= {level_accuracy(level): right for level, right in enumerate(correct.T, start=1)}
        for name, share in shares.items():
            metric = self._metrics.setdefault(name, MeanMetric().to(pl_module.device))
            metric.update(share.float().to(pl_module.device))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the shares over all processes; each process has images."""
        means = {name: metric.compute() for name, metric in self._metrics.items()}
        pl_module.log_dict({test_key(name): mean for name, mean in means.items()})
