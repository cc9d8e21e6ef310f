"""Checkpoints of a run, and how a run may resume.

A checkpoint holds all parameters and persistent buffers that no ``kdpl.clip.Frozen`` carries,
optimiser and progress, the state of callbacks, and what modules and callbacks add in
``on_save_checkpoint``: fingerprints of CLIP and teachers, and the views; with 16-mixed also the
gradient scaler. The states of metrics are left out, and so are those of random generators: orders
and views depend on seed, epoch and image alone.

A resumed run ends with the same weights, bit for bit, in float32 on the CPU with as many processes.
"""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from kdpl.data.domain import domain_of
from kdpl.errors import ArtifactError, ConfigError, reason
from kdpl.runtime.files import atomic_path
from kdpl.runtime.run_folder import CHECKPOINTS_FOLDER, LAST


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
        # 0: one of the two is no fit
        if 0 in (before, now) or before == now:
            return
        raise ConfigError(
            f"the run took {before} images a step, and would take {now} now: set "
            f"data.init_args.batch_size times the number of processes to {before}"
        )


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it.

    The previous one thus survives a kill or a full disk.

    Lightning writes to the system's temporary folder first, and a rename across disks is a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; called on one process."""
        # not by torch, whose error of a full disk has no number
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with atomic_path(Path(path)) as temporary:
            temporary.write_bytes(content.getbuffer())


def require_intact(file: Path) -> None:
    """Raise a ConfigError for a missing checkpoint, an ArtifactError for a damaged or other one."""
    if not file.is_file():
        raise ConfigError(
            f"checkpoint {file} does not exist: give the file of a run's checkpoint as --ckpt_path"
        )
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch each raise their own
        raise ArtifactError(
            f"checkpoint {file} is damaged ({reason(error)}): remove it to start over, or give "
            "another --ckpt_path"
        ) from error
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise ArtifactError(f"{file} is not a run's checkpoint: give one written by fit")
