"""What both stages log: the values of their training, and how well they classify labelled images not trained on."""

from abc import ABC, abstractmethod
from typing import Any, TypedDict

from lightning.pytorch import LightningModule
from torch import Tensor

from kdpl.clip.loading import ImageClip
from kdpl.domain import domain_of
from kdpl.errors import WeightsError
from kdpl.metrics import DomainAccuracy
from kdpl.training_means import TrainingMeans

EvalBatch = tuple[Tensor, Tensor, Tensor]
"""Images uint8 [B, 3, S, S], labels [B], indices [B]."""


_CLIP_KEY = "kdpl_clip"
_MEANS_KEY = "kdpl_training_means"


class EvalOutput(TypedDict):
    """What an evaluation step hands to callbacks.

    Attributes:
        logits: [B, C].
        labels: [B].
        indices: Positions of the images in their split, [B].
    """

    logits: Tensor
    labels: Tensor
    indices: Tensor


class EvaluatedModule(LightningModule, ABC):
    """A LightningModule that classifies images of a domain and logs its accuracies.

    Logs ``val/…`` and ``test/…`` with the keys of ``DomainAccuracy``, and by ``log_training`` means over an epoch's
    images, with which a fit goes on that was cut within the epoch.

    Args:
        clip: The CLIP whose image tower it works with.
        compile: Compile that tower by ``torch.compile``; pays on GPUs after a minute or so of compiling.
    """

    val_metrics: DomainAccuracy
    test_metrics: DomainAccuracy

    def __init__(self, clip: ImageClip, compile: bool = False) -> None:
        super().__init__()
        self.compiles = compile
        if compile:
            clip.image_tower.compile_parts()
        self.clip = clip.identity
        self.preprocessing = clip.preprocessing
        self.logit_scale = clip.logit_scale
        self.training_means = TrainingMeans()
        self._means_before: dict[str, Tensor] = {}

    @property
    def image_size(self) -> int:
        """Side of the square images that the CLIP takes, pixels."""
        return self.preprocessing.image_size

    @abstractmethod
    def class_logits(self, images: Tensor) -> Tensor:
        """Classify images uint8 [B, 3, S, S] into logits [B, C] over all classes of the domain."""

    def setup(self, stage: str) -> None:
        """Make the metrics for the domain's base/novel split."""
        del stage
        num_base = domain_of(self).num_base
        self.val_metrics = DomainAccuracy(num_base)
        self.test_metrics = DomainAccuracy(num_base)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say on which CLIP it was made, since CLIP itself is not in it, and keep the means of an epoch under way."""
        checkpoint[_CLIP_KEY] = self.clip.fingerprint
        if self.training_means and not self.trainer.is_last_batch:
            checkpoint[_MEANS_KEY] = self.training_means.parts(self.trainer.strategy.all_gather)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that was made on another CLIP.

        Raises:
            WeightsError: The image tower's weights are not those that the checkpoint was made on.
        """
        if checkpoint.get(_CLIP_KEY) != self.clip.fingerprint:
            raise WeightsError(
                f"the checkpoint was made on other weights than {self.clip.pretrained!r} of {self.clip.model}: "
                "use the clip settings of its run"
            )
        self._means_before = checkpoint.get(_MEANS_KEY, {})

    def on_train_start(self) -> None:
        """Go on with the means of an epoch that was cut."""
        trainer = self.trainer
        self.training_means.go_on(self._means_before, trainer.global_rank, trainer.world_size, self.device)
        self._means_before = {}

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> EvalOutput:
        """Classify a batch of the validation split."""
        del batch_idx
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: EvalBatch, batch_idx: int) -> EvalOutput:
        """Classify a batch of the test split."""
        del batch_idx
        return self._evaluate(batch, self.test_metrics)

    def _evaluate(self, batch: EvalBatch, metrics: DomainAccuracy) -> EvalOutput:
        images, labels, indices = batch
        logits = self.class_logits(images).float()
        metrics.update(logits, labels)
        return {"logits": logits, "labels": labels, "indices": indices}

    def log_training(self, values: dict[str, Tensor], batch_size: int) -> None:
        """Log the means of a step's values over an epoch's images, those of all processes; ``train/loss`` is shown."""
        means = {name: self.training_means.count(name, value, batch_size) for name, value in values.items()}
        for name, mean in means.items():
            attribute = f"training_means.{name}"
            self.log(name, mean, name == "train/loss", on_step=False, on_epoch=True, metric_attribute=attribute)

    def on_validation_epoch_end(self) -> None:
        """Log the validation accuracies."""
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log the test accuracies."""
        self._log_metrics("test", self.test_metrics)

    def _log_metrics(self, split: str, metrics: DomainAccuracy) -> None:
        # compute() sums over processes: the values are already the same on all of them
        values = {f"{split}/{key}": value for key, value in metrics.compute().items()}
        self.log_dict(values, prog_bar=split == "val")
        metrics.reset()
