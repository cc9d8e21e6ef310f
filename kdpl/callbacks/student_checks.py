"""Checks before a student's first step: the images of a resumed run, and those of a batch."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kdpl.data.batches import Batch
from kdpl.data.domain import domain_of
from kdpl.errors import ConfigError
from kdpl.runtime.messages import warn

_VIEWS_KEY = "kdpl_views"
_HOLDS_OUT_KEY = "kdpl_holds_out"
_PUBLISHED_BATCH = 8


class SameViews(Callback):
    """Refuses to resume a run with other images or views, which the checkpoint describes."""

    def __init__(self) -> None:
        self._before: tuple[int, int | None] | None = None
        self._held_out: bool | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the views, and whether images are held out of distillation."""
        checkpoint[_VIEWS_KEY] = views_of(trainer)
        checkpoint[_HOLDS_OUT_KEY] = domain_of(trainer).holds_out

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the views to compare them, since callbacks may fill a cache until the fit starts."""
        before = checkpoint.get(_VIEWS_KEY)
        self._before = None if before is None else tuple(before)
        self._held_out = checkpoint.get(_HOLDS_OUT_KEY, False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare with images and views of the checkpoint; a ConfigError if they differ."""
        before, now = self._before, views_of(trainer)
        if before is not None and before != now:
            raise ConfigError(
                f"the run started with different views of its images ({_words(*before)}) from "
                f"those the settings now give ({_words(*now)}): set data.init_args.teacher_cache "
                "to what it was, or choose another --out"
            )
        if self._held_out not in (None, domain_of(trainer).holds_out):
            did, remedy = ("no ", "out of") if not self._held_out else ("", "in")
            raise ConfigError(
                f"the run has held {did}images out of distillation until now: leave "
                f"kdpl.fidelity.Fidelity {remedy} trainer.callbacks, or choose another --out"
            )


def _words(seed: int, views: int | None) -> str:
    return f"{f'{views} of each' if views else 'one in each epoch'}, seed {seed}"


def views_of(trainer: Trainer) -> tuple[int, int | None]:
    """Return the seed of the views of unlabelled images, and their number for each image.

    The number is None if each epoch has a new view.
    """
    data, epochs = domain_of(trainer), trainer.max_epochs
    cached = data.cached_features
    if cached is None:
        return data.seed, None
    in_one_pass = epochs is not None and 0 <= epochs <= cached.views
    return cached.view_seed, None if in_one_pass else cached.views


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
