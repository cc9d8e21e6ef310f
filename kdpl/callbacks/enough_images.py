"""Check of the batch size under a projector's batch norm."""

from lightning.pytorch import Callback, LightningModule, Trainer

from kdpl.data.batches import Batch
from kdpl.errors import ConfigError
from kdpl.runtime.messages import warn

_PUBLISHED_BATCH = 8


class EnoughImages(Callback):
    """Refuses a batch of one image, and warns of a small one for the projector's batch norm."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Count the images of the first batch, those of all processes together."""
        images = len(batch.images) * trainer.world_size
        remedy = (
            "set data.init_args.batch_size so that all processes together take "
            f"{_PUBLISHED_BATCH} or more"
        )
        if images == 1:
            raise ConfigError(f"the projector's batch norm cannot take one image: {remedy}")
        if trainer.global_step == 0 and batch_idx == 0 and images < _PUBLISHED_BATCH:
            warn(
                f"the projector's batch norm has {images} images at a time, which costs accuracy: "
                f"{remedy}"
            )
