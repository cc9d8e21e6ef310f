"""Choice of the epoch by test accuracy, as published; nothing else in kdpl chooses so."""

from collections.abc import Iterable
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.data.batches import EvaluationBatch
from kdpl.data.domain import domain_of
from kdpl.data.inference import infer
from kdpl.errors import ConfigError, DataError
from kdpl.metrics import ACC, BASE_ACC, TEST_CHOICE
from kdpl.module import ClassifyingModule, evaluating
from kdpl.runtime.messages import inform, warn
from kdpl.tasks import require_one_class


class BestOnBaseTest(Callback):
    """Restores the weights of the epoch with the best accuracy on the base test images.

    The code published with PromptKD chooses its epoch this way, and reports the accuracies of that
    epoch. A test accuracy that chose the model is not an estimate for new images, as the log and
    the tables point out. Without base classes, the accuracy over all classes is used. The earlier
    epoch wins a tie.

    Checkpoints include the best weights so far, so that a resumed run chooses the same epoch.
    """

    def __init__(self) -> None:
        self.accuracy = -1.0
        self.epoch = -1
        self.weights: dict[str, Tensor] = {}
        self._test_images: Iterable[EvaluationBatch] = ()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a domain without usable test images, and warn that the test set is used."""
        data = domain_of(trainer)
        require_one_class(data.task, "BestOnBaseTest")
        if not data.splits.test:
            raise DataError(
                "BestOnBaseTest needs test images, and the dataset has none: leave it out of "
                "trainer.callbacks"
            )
        if trainer.current_epoch > 0 and self.epoch < 0:
            raise ConfigError(
                "BestOnBaseTest was not there when the run began, and has not seen its first "
                "epochs: leave it out of trainer.callbacks, or choose another --out"
            )
        warn(
            "BestOnBaseTest looks at the TEST set: each epoch is tested, and the best one is the "
            "result"
        )
        # made once, so that its worker processes persist over epochs
        self._test_images = data.test_dataloader()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test this epoch's weights; after the last epoch restore the best ones."""
        accuracy = _base_accuracy(trainer, cast(ClassifyingModule, pl_module), self._test_images)
        pl_module.log(TEST_CHOICE, accuracy)
        if accuracy > self.accuracy:
            self.accuracy, self.epoch = accuracy, trainer.current_epoch
            self.weights = {
                name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()
            }
        ends = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if ends or 0 <= trainer.max_steps <= trainer.global_step:
            pl_module.load_state_dict(self.weights)
            inform(
                f"epoch {self.epoch + 1} is the result, chosen by its accuracy on the base "
                f"classes' TEST images ({100 * self.accuracy:.2f} %)"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the best epoch so far, with its weights."""
        return {"accuracy": self.accuracy, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best epoch so far from a checkpoint."""
        vars(self).update(state_dict)


def _base_accuracy(
    trainer: Trainer, module: ClassifyingModule, test_images: Iterable[EvaluationBatch]
) -> float:
    metric = module.task.accuracy(domain_of(trainer).num_base).to(module.device)
    with evaluating(module):
        for logits, batch in infer(module.evaluation_logits, test_images, module.device):
            metric.update(logits, batch.labels.to(module.device))
    values = metric.compute()
    return float(values.get(BASE_ACC, values[ACC]))
