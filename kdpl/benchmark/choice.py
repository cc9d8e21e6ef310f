"""The published choice of an epoch, which looks at the test set; nothing else in kdpl does."""

from collections.abc import Iterable
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kdpl.data.batches import EvaluationBatch
from kdpl.data.domain import domain_of
from kdpl.data.inference import infer
from kdpl.errors import ConfigError, DataError
from kdpl.module import ClassifyingModule
from kdpl.runtime.messages import inform, warn
from kdpl.tasks import require_one_class


def is_last_epoch(trainer: Trainer) -> bool:
    """Return whether training ends with this epoch, as far as that is known at its end."""
    steps = 0 <= trainer.max_steps <= trainer.global_step
    return trainer.should_stop or steps or trainer.current_epoch + 1 == trainer.max_epochs


class BestOnBaseTest(Callback):
    """Replaces the last weights with those of the epoch that is best on the base test images.

    The code published with PromptKD chooses its epoch this way, and reports the accuracies of that
    epoch. A test accuracy that chose the model is not an estimate for new images: the log and the
    tables say so. Without base classes the accuracy over all classes is used. The earlier epoch
    wins a tie.

    The best weights so far are part of checkpoints, so that a resumed run chooses the same epoch.
    """

    def __init__(self) -> None:
        self.accuracy = -1.0
        self.epoch = -1
        self.weights: dict[str, Tensor] = {}
        self._test_images: Iterable[EvaluationBatch] = ()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a domain that cannot be tested so, and warn that the test set is used."""
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
        # once, so that its worker processes persist over epochs
        self._test_images = data.test_dataloader()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test this epoch's weights; after the last epoch restore the best ones."""
        accuracy = _base_accuracy(trainer, cast(ClassifyingModule, pl_module), self._test_images)
        pl_module.log("choice/test_base_acc", accuracy)
        if accuracy > self.accuracy:
            self.accuracy, self.epoch = accuracy, trainer.current_epoch
            self.weights = {
                name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()
            }
        if is_last_epoch(trainer):
            pl_module.load_state_dict(self.weights)
            inform(
                f"epoch {self.epoch + 1} is the result, chosen by its accuracy on the base "
                f"classes' TEST images ({100 * self.accuracy:.2f} %)"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the best epoch so far."""
        return {"accuracy": self.accuracy, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best epoch of a checkpoint."""
        self.accuracy, self.epoch, self.weights = (
            state_dict[k] for k in ("accuracy", "epoch", "weights")
        )


def _base_accuracy(
    trainer: Trainer, module: ClassifyingModule, test_images: Iterable[EvaluationBatch]
) -> float:
    """Test accuracy over the base classes, on all processes together."""
    metric = module.task.accuracy(domain_of(trainer).num_base).to(module.device)

    def classify(images: Tensor) -> Tensor:
        with trainer.precision_plugin.forward_context():
            return module.class_logits(images)

    module.eval()
    for logits, batch in infer(classify, test_images, module.device):
        metric.update(logits.float(), batch.labels.to(module.device))
    module.train()

    values = metric.compute()
    return float(values.get("base_acc", values["acc"]))
