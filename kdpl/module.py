"""Base module of both stages: classifies labelled images of a domain, and logs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pkgutil import resolve_name
from typing import Any, TypedDict, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from kdpl.clip import ImageClip, store_frozen
from kdpl.clip.modules import require_tensors
from kdpl.data.batches import Batch, EvaluationBatch
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.domain import domain_of
from kdpl.data.names import Indices
from kdpl.data.needs import Needs
from kdpl.errors import ArtifactError, ConfigError
from kdpl.metrics import ACC, HM, test_key, train_key, val_key
from kdpl.optim import OptimConfig, build_optimizer
from kdpl.runtime.origin import require_same
from kdpl.runtime.resizing import Resizing
from kdpl.tasks import MULTI_CLASS, ClassScaling, Task, build_task

ORIGIN_KEY = "kdpl_origin"
"""Checkpoint key of the inputs of a run (``kdpl.runtime.origin``)."""


_CALLBACKS = (
    "kdpl.confidence.negatives:callbacks",
    "kdpl.multilabel.callback:callbacks",
)
"""Functions that return callbacks of a module, as dotted paths: their files import this one."""


def further_callbacks(module: LightningModule) -> list[Callback]:
    """Return the callbacks of negative vectors and of several labels for a fit or test."""
    return [callback for path in _CALLBACKS for callback in resolve_name(path)(module)]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode within the context, without gradients."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    with torch.no_grad():
        yield
    for submodule, was_training in modes.items():
        submodule.training = was_training


class EvalOutput(TypedDict):
    """Output of a step: logits [B, C], labels, and the images' positions in their split, [B].

    Labels are as in ``EvaluationBatch``.
    """

    logits: Tensor
    labels: Tensor
    indices: Tensor


class ClassifyingModule(LightningModule, ABC):
    """A LightningModule that classifies images and logs ``val/…`` and ``test/…`` accuracies.

    Args:
        clip: The CLIP whose image tower is used.
        compile: Compile the tower with ``torch.compile``; pays off on GPUs after about a minute of
            compiling.
    """

    task: Task = MULTI_CLASS
    # learned scale and bias of each class; None for tasks without any
    scores: ClassScaling | None
    optim: OptimConfig
    logit_scale: float
    val_metrics: Metric
    test_metrics: Metric

    def __init__(self, clip: ImageClip, compile: bool = False) -> None:
        super().__init__()
        self.compiles = compile
        if compile:
            clip.image_tower.compile_parts()
        self.scores = None
        self.clip = clip.identity
        self.preprocessing = clip.preprocessing
        if clip.logit_scale is not None:
            self.logit_scale = clip.logit_scale

    @property
    def resizing(self) -> Resizing:
        """The CLIP's resizing of images, in training as in evaluation."""
        return self.preprocessing.resizing

    def origin(self, fits: bool) -> dict[str, Any]:
        """Return the inputs of its weights that a checkpoint lacks; with ``fits``, of a fit too."""
        return {"clip": self.clip.fingerprint}

    @property
    def domain(self) -> DomainDataModule:
        """The datamodule of the trainer; a ConfigError for another kind of data."""
        return domain_of(self.trainer)

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """The images for training and evaluation."""

    @abstractmethod
    def class_logits(self, images: Tensor) -> Tensor:
        """Classify images uint8 [B, 3, S, S] into logits [B, C] over all classes of the domain."""

    def batch_logits(self, batch: Batch) -> Tensor:
        """Classify the images of a batch as ``class_logits`` does."""
        return self.class_logits(batch.images)

    def evaluation_logits(self, images: Tensor) -> Tensor:
        """Classify images outside of a step, in the trainer's precision: float32 [B, C]."""
        with self.trainer.precision_plugin.forward_context():
            return self.class_logits(images).float()

    def stored_features(self, indices: Indices) -> Tensor | None:
        """Return the features [n, D] of unlabelled images that are stored; None: run the tower."""
        return None

    def setup(self, stage: str) -> None:
        """Take the task from the data, and make its metrics for the base/novel split.

        Stores the frozen weights in the trainer's precision.
        """
        domain = self.domain

        # the task, with scales and biases for the classes that it trains on
        self.task = build_task(domain.task)
        self.task.require_classes(domain.class_names)
        if self.scores is None:
            tunes = self.needs.split == "labeled"
            trained = domain.tuning_class_names if tunes else domain.class_names
            self.scores = self.task.class_scaling(len(domain.class_names), len(trained))

        # metrics, also of base and novel classes
        num_base = domain.num_base
        self.val_metrics = self.task.accuracy(num_base)
        self.test_metrics = self.task.accuracy(num_base)
        self.apply_precision()

    def prepare_fit(self) -> None:
        """Choose and encode what a fit needs before its first step, called by ``Prepare``."""

    def scored(self, logits: Tensor) -> Tensor:
        """Apply the scales and biases of classes, if any, to logits [B, K] of the first K."""
        return logits if self.scores is None else self.scores(logits)

    def on_fit_start(self) -> None:
        """Initialise the scales and biases of classes."""
        if self.scores is not None:
            self.scores.begin(self)

    # for a CLIP that is tested without a fit
    on_test_start = on_fit_start

    def apply_precision(self) -> None:
        """Store the frozen weights in the dtype of autocast; in float32 without autocast."""
        device = self.trainer.strategy.root_device.type
        with self.trainer.precision_plugin.forward_context():
            dtype = (
                torch.get_autocast_dtype(device)
                if torch.is_autocast_enabled(device)
                else torch.float32
            )
        store_frozen(self, dtype)

    def configure_optimizers(self) -> Any:
        """Build the optimiser over all trained parameters, and its schedule.

        None for the zero-shot CLIP.
        """
        if not any(p.requires_grad for p in self.parameters()):
            return None
        return build_optimizer(
            self.parameters(),
            self.optim,
            self.trainer.max_epochs,
            # not read here: it makes the training loader, before the images are chosen
            lambda: self.trainer.estimated_stepping_batches,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the origin of the weights to the checkpoint."""
        checkpoint[ORIGIN_KEY] = {**checkpoint.get(ORIGIN_KEY, {}), **self.origin(fits=False)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that does not fit."""
        # compare the origins
        noted, now = checkpoint.get(ORIGIN_KEY), self.origin(fits=False)
        before = noted and {name: noted.get(name) for name in now}
        remedy = "use the settings of its run, or start in a new folder; the CLIP is now "
        remedy += f"{self.clip.pretrained!r} of {self.clip.model}"
        require_same("the checkpoint", before, now, remedy, kind=ArtifactError)

        # compare names and shapes of the parameters
        try:
            require_tensors(self.state_dict(), checkpoint["state_dict"])
        except ValueError as error:
            raise ConfigError(
                f"the checkpoint does not fit the settings ({error}): use those of its run"
            ) from error

    def validation_step(self, batch: EvaluationBatch, batch_idx: int) -> EvalOutput:
        """Classify a batch of the validation split."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: EvaluationBatch, batch_idx: int) -> EvalOutput:
        """Classify a batch of the test split."""
        return self._evaluate(batch, self.test_metrics)

    def _evaluate(self, batch: EvaluationBatch, metrics: Metric) -> EvalOutput:
        logits = self.batch_logits(batch).float()
        metrics.update(logits, batch.labels)
        return {"logits": logits, "labels": batch.labels, "indices": batch.indices}

    def sum_and_log(
        self, terms: Mapping[str, Tensor], batch_size: int, **further: Tensor
    ) -> Tensor:
        """Return a step's loss, the sum of its terms, and log it.

        Logs the loss, its terms if there are several, and the further values, as means over an
        epoch's images on all processes. ``loss`` appears in the progress bar.
        """
        loss = torch.stack(list(terms.values())).sum()
        parts = {f"loss_{name}": term for name, term in terms.items()} if len(terms) > 1 else {}
        for name, value in {"loss": loss, **further, **parts}.items():
            self.log(
                train_key(name),
                value.detach(),
                prog_bar=name == "loss",
                on_step=False,
                on_epoch=True,
                sync_dist=True,
                batch_size=batch_size,
            )
        return loss

    def on_validation_epoch_end(self) -> None:
        """Log the validation accuracies."""
        for name, value in self.val_metrics.compute().items():
            self.log(val_key(name), value, prog_bar=name in (ACC, HM))
        self.val_metrics.reset()

    def on_test_epoch_end(self) -> None:
        """Log the test accuracies."""
        # compute() sums over processes: the values are the same on all of them
        self.log_dict({test_key(k): v for k, v in self.test_metrics.compute().items()})
        self.test_metrics.reset()


class Prepare(Callback):
    """Prepares a module's fit before its first step, on all processes together."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the fit, before the training loader is made.

        Weights are restored by then; the module's ``on_fit_start`` sees the chosen images.
        """
        cast(ClassifyingModule, pl_module).prepare_fit()
