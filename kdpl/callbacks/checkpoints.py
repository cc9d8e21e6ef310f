"""Checkpoints of a run, and how a run may resume.

A checkpoint holds all parameters and persistent buffers that no ``kdpl.clip.Frozen`` carries,
optimiser and progress, the state of callbacks, and what modules and callbacks add in
``on_save_checkpoint``; with 16-mixed also the gradient scaler. The states of metrics are left out,
as nothing but a row of ``metrics.csv`` depends on them, and so are those of random generators:
orders and views depend on seed, epoch and image alone. The first process writes it, and each
process reads it.

- A teacher's parameters are ``prompts.*``, named as in ``prompts.safetensors`` unless the method
  overrides ``saved``; a student's ``encoder.prompts.tokens``, ``encoder.projector.layers.*`` and,
  with ``fine_tune``, ``encoder.tower.module.visual.*``; of several labels also ``scores.*``.
- Added are fingerprints of the CLIP (``kdpl_clip``) and of a student's teachers (``kdpl_teacher``,
  ``kdpl_more_teachers``), and what rooms compare (``kdpl_views``, ``kdpl_holds_out``). A student's
  own text tower (``text_features: student``) has none: settings name it. Values of class vectors
  are not compared either; they are read anew from the teacher's folder.
- Callbacks with a state: ``SameSteps``, ``GaussianPromptAveraging``, and those that a config adds,
  such as ``EarlyStopping``; that of ``RunCheckpoint`` is for information.

A resumed run compares ``config.yaml`` and writes it anew. It also reads, from its folder, the look
at all images (``checked_images.json``), what a pool filter left out, and prepared targets; outside
of it the CLIP's weights and the teachers' folders. What begins a run is not repeated: prompts at
the mean token, scores of several labels, and those files.

Without a checkpoint a fit starts over, and settings are not compared; neither are they with
``--ckpt_path`` and an empty folder, but what the checkpoint holds by itself is.

A fit begins in this order:

1. datamodule: ``prepare_data`` on the first process, then ``setup``, which opens a teacher cache
   unless it is to be filled
2. ``setup`` of the callbacks, which may hold images out, and of the module, which loads teachers
3. weights and callbacks' states from the checkpoint, with the refusals of ``on_load_checkpoint``
4. DistributedDataParallel, optimiser and schedule
5. ``on_fit_start`` of the callbacks, which fill a cache, leave images out, prepare targets
   and compare views, in this order, and of the module
6. optimiser and progress from the checkpoint, and then the training loader

A resumed run ends with the same weights, bit for bit, in float32 on the CPU with as many processes
and threads and the same packages, if the network is not compiled and has no random layers of its
own, such as dropout. A test restores weights as well, and compares the fingerprints and the shapes
alone.
"""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from kdpl.data.domain import domain_of
from kdpl.data.names import digest_of
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
        """Save between two steps of an epoch, and not between batches that are accumulated.

        Not after its last step either: Lightning resumes such a checkpoint in the next epoch,
        without the validation of this one. The checkpoint of the epoch's end follows at once.
        """
        accumulates = (args[-1] + 1) % trainer.accumulate_grad_batches > 0
        if not accumulates and not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args)


class SameSteps(Callback):
    """Refuses to resume a run with other images, or another number of them in a step.

    The number is that of all processes together. Learning rate and schedule fit it, and in either
    case an interrupted epoch would see some images twice or not at all. The checkpoint holds the
    number, and a digest of the images' paths below their common folder; neither their content nor
    their labels. Accumulated batches do not count: their number is a setting that may not change.
    """

    def __init__(self) -> None:
        self._now: dict[str, Any] = {}  # empty if it is no fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note images and steps of a fit."""
        if stage == "fit":
            data = domain_of(trainer)
            self._now = {
                "images": digest_of(data.all_training_images()),
                "images_per_step": data.batch_size * trainer.world_size,
            }

    def state_dict(self) -> dict[str, Any]:
        """Return the digest of all images, and the number of those of a step."""
        return self._now

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with what a checkpoint holds; a ConfigError if it differs."""
        if not state_dict or not self._now:
            return
        # one of an earlier version has no digest
        if state_dict.get("images", self._now["images"]) != self._now["images"]:
            raise ConfigError(
                "the run was trained on other images than there are now: put back those that it "
                "had, or choose another --out"
            )
        before, now = state_dict["images_per_step"], self._now["images_per_step"]
        if before != now:
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
    """Raise a ConfigError for a missing checkpoint, an ArtifactError for a damaged or other one.

    Damage is what torch.load notices: a file that was cut off, or is of another kind.
    """
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
