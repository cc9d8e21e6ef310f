"""Choice of the unlabelled images that a student learns from, before its first step."""

from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer

from kdpl.data.domain import domain_of
from kdpl.errors import DataError
from kdpl.metrics import POOL_KEPT
from kdpl.pool_filter.similarity import LEFT_OUT_FILE, filter_pool
from kdpl.preparation import TargetInputs
from kdpl.runtime.messages import inform
from kdpl.student import StudentDistillation


class FilterPool(Callback):
    """Leaves out unlabelled images that are unlike all classes, on all processes.

    Args:
        quantile: Quantile of the labelled images' similarities below which unlabelled images are
            left out.
    """

    def __init__(self, quantile: float) -> None:
        self.quantile = quantile
        self.kept = 1.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose images, before the training loader is made.

        Raises:
            DataError: No label may be seen, or no image is left.
        """
        data = domain_of(trainer)
        _ = data.labels.training()  # refused before any image is encoded
        inputs = TargetInputs(trainer, cast(StudentDistillation, pl_module))
        data.pool.leave_out(filter_pool(inputs, self.quantile))

        images, kept = len(inputs.indices), len(data.pool.targeted)
        if not kept:
            raise DataError(
                f"pool_filter leaves out all {images} unlabelled images: check what they show"
            )
        self.kept = kept / images
        file = inputs.folder / LEFT_OUT_FILE
        inform(f"pool filter: keeps {kept} of {images} unlabelled images; the others are in {file}")
        if inputs.num_base is not None:
            inform(
                "pool filter: its limit is of base classes, and leaves out more images of novel "
                "ones than of these"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the share of images that are kept."""
        pl_module.log(POOL_KEPT, self.kept)
