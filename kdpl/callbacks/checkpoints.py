"""Checkpoints of a run, and how a run may resume.

There are the last one and, until the run is finished, the one before it.

A checkpoint holds all parameters and persistent buffers that no ``kdpl.clip.Frozen`` carries,
optimiser and progress, the state of callbacks, and what modules and callbacks add in
``on_save_checkpoint``: fingerprints of CLIP and teachers, and the views.
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from kdpl.data.domain import domain_of
from kdpl.errors import ArtifactError, ConfigError, reason
from kdpl.runtime.files import atomic_path
from kdpl.runtime.messages import warn
from kdpl.runtime.run_folder import CHECKPOINTS_FOLDER, LAST, PREVIOUS, handed_over


class RunCheckpoint(ModelCheckpoint):
    """Saves the last checkpoint into a run's folder, every so many steps or after each epoch."""

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__(
            filename=Path(LAST).stem,
            save_top_k=1,
            enable_version_counter=False,
            every_n_train_steps=every_n_steps,
            save_on_train_epoch_end=every_n_steps is None,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the folder, which is known only now."""
        self.dirpath = str(Path(trainer.default_root_dir) / CHECKPOINTS_FOLDER)
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save between two steps of an epoch.

        Not after its last step: Lightning resumes such a checkpoint in the next epoch, without the
        validation of this one. The checkpoint of the epoch's end follows at once.
        """
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the checkpoint before the last one once the run is finished."""
        folder = Path(trainer.default_root_dir)
        if trainer.is_global_zero and handed_over(folder):
            (folder / PREVIOUS).unlink(missing_ok=True)


class SameSteps(Callback):
    """Refuses to resume a run with another number of images in a step of all processes together.

    The checkpoint holds that number. Learning rate and schedule fit it, and with another one an
    interrupted epoch would see some images twice or not at all.
    """

    def __init__(self) -> None:
        self._batch_size = 0
        self._processes = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the images of a step, for a fit."""
        if stage == "fit":
            self._batch_size, self._processes = domain_of(trainer).batch_size, trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        """Return the images of a step."""
        return {"images_per_step": self._batch_size * self._processes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the images of a step in a checkpoint; a ConfigError if they differ."""
        before, now = state_dict["images_per_step"], self._batch_size * self._processes
        if 0 in (before, now) or before == now:
            return
        each, rest = divmod(before, self._processes)
        change = (
            f"trainer.devices to a divisor of {before}"
            if rest
            else f"data.init_args.batch_size to {each}"
        )
        several = (
            f" ({self._batch_size} on each of {self._processes} processes)"
            if self._processes > 1
            else ""
        )
        raise ConfigError(
            f"the run took {before} images a step, and would take {now}{several} now: set {change}"
        )


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it.

    The previous one thus survives a kill or a full disk.

    Lightning writes to the system's temporary folder first, and a rename across disks is a copy. A
    ``last.ckpt`` that exists becomes ``previous.ckpt``.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; called on one process."""
        path = Path(path)
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)
            if path.name == Path(LAST).name and path.is_file():
                _keep(path, path.with_name(Path(PREVIOUS).name))


def _keep(last: Path, previous: Path) -> None:
    """Link the last checkpoint to a second name, so that one exists at every moment."""
    previous.unlink(missing_ok=True)
    try:
        previous.hardlink_to(last)
    except OSError:
        # a file system without hard links
        last.replace(previous)


def newest(folder: Path) -> Path | None:
    """Return the newest intact checkpoint of a run, or None; an ArtifactError if all are damaged.

    A damaged one is named in a warning, and the one before it is returned.
    """
    damaged: ArtifactError | None = None
    for file in (folder / LAST, folder / PREVIOUS):
        if not file.is_file():
            continue
        try:
            require_intact(file)
        except ArtifactError as error:
            damaged = error
        else:
            if damaged is not None:
                warn(f"{str(damaged).split(': ')[0]}; resuming from the one before it, {file}")
            return file
    if damaged is not None:
        raise damaged
    return None


def require_intact(file: Path) -> None:
    """Raise a ConfigError for a missing checkpoint, an ArtifactError for an invalid one."""
    if not file.is_file():
        raise ConfigError(
            f"checkpoint {file} does not exist: give the file of a run's checkpoint as --ckpt_path"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        complete = {"state_dict", "epoch", "pytorch-lightning_version"} <= content.keys()
    except Exception as error:  # pickle, zipfile and torch each raise their own
        raise ArtifactError(
            f"checkpoint {file} is damaged ({reason(error)}): remove it to start over, or give "
            "another --ckpt_path"
        ) from error
    if not complete:
        raise ArtifactError(f"{file} is not a run's checkpoint: give one written by fit")
