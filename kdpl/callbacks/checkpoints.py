"""Checkpoints of a run, and the rules for resuming it.

A checkpoint holds the parameters and persistent buffers outside ``kdpl.clip.Frozen``, optimiser and
progress, the state of callbacks, and what modules and callbacks add in ``on_save_checkpoint``; with
16-mixed also the gradient scaler. The states of metrics and of random generators are left out:
orders and views depend on seed, epoch and image alone.

- A teacher's parameters are ``prompts.*``, named as in ``prompts.safetensors`` unless the method
  overrides ``saved``; a student's ``encoder.prompts.tokens``, ``encoder.projector.layers.*`` and,
  with ``fine_tune``, ``encoder.tower.module.visual.*``; with several labels also ``scores.*``.
- The inputs of the run are added as its origin, see ``SameRun``.

Weights are restored before stage 2 is prepared (``kdpl/targets/plan.py``), and initialisations are
not repeated: prompts at the mean token, scores of several labels. A test restores weights as well,
and compares only fingerprints and shapes. docs/cluster.md lists the other files that a resumed run
reads, and how each is compared.
"""

import io
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from kdpl.data.domain import domain_of
from kdpl.errors import ArtifactError, ConfigError, reason
from kdpl.module import ORIGIN_KEY, ClassifyingModule
from kdpl.runtime.files import atomic_path
from kdpl.runtime.origin import Origin, require_same
from kdpl.runtime.run_folder import CHECKPOINTS_FOLDER, LAST

_OR = "or choose another --out"
_AS_CACHED = f"set model.init_args.teacher_cache to what it was, {_OR}"
_REMEDIES = {
    "images": f"put back the images that it had, {_OR}",
    "images a step": "set data.init_args.batch_size times the number of processes to what it was",
    "images held out": "add kdpl.targets.fidelity.Fidelity to trainer.callbacks, or remove it, as "
    f"before, {_OR}",
    "views": _AS_CACHED,
    "seed of the views": _AS_CACHED,
}


class RunCheckpoint(ModelCheckpoint):
    """Saves the last checkpoint into a run's folder, every N steps or after each epoch."""

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__(
            filename=Path(LAST).stem,
            save_top_k=1,
            enable_version_counter=False,
            every_n_train_steps=every_n_steps,
            save_on_train_epoch_end=every_n_steps is None,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the folder, now that the trainer is known."""
        self.dirpath = str(Path(trainer.default_root_dir) / CHECKPOINTS_FOLDER)
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save between two steps of an epoch, but not between accumulated batches.

        Not after its last step either: Lightning resumes such a checkpoint in the next epoch,
        without the validation of this epoch. The checkpoint at the epoch's end follows at once.
        """
        accumulates = (args[-1] + 1) % trainer.accumulate_grad_batches > 0
        if not accumulates and not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args)


class SameRun(Callback):
    """Adds the origin of a run to checkpoints, and refuses to resume from a different origin.

    Module and datamodule return it as ``origin``. Part of it is compared before the preparation,
    and all of it before the first step. Images are compared by their paths below their common
    folder, and their contents by ``Reading``. Images in a step are counted over all processes.
    """

    def __init__(self) -> None:
        self._before: Origin | None = None  # from the checkpoint of a resumed run
        self._now: Origin = {}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Compare the part available before the preparation; a ConfigError if it differs."""
        if trainer.state.fn == "fit":
            self._before = checkpoint.get(ORIGIN_KEY)
            self._require_same(_origin(trainer, prepared=False))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the complete origin, and compare it; a ConfigError if it differs."""
        self._now = _origin(trainer, prepared=True)
        if self._before is not None:
            self._require_same(self._now)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the origin to the checkpoint."""
        # a callback may save before the preparation ends
        now = self._now or _origin(trainer, prepared=False)
        checkpoint[ORIGIN_KEY] = {**checkpoint.get(ORIGIN_KEY, {}), **now}

    def _require_same(self, now: Origin) -> None:
        before = self._before and {name: self._before.get(name) for name in now}
        require_same("the run's checkpoint", before, now, f"use what it had, {_OR}", _REMEDIES)


def _origin(trainer: Trainer, prepared: bool) -> Origin:
    module = cast(ClassifyingModule, trainer.lightning_module)
    return {**module.origin(fits=True), **domain_of(trainer).origin(prepared)}


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name in its folder, and renames it.

    Lightning writes to the system's temporary folder, and a rename across disks is a copy.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; called on one process."""
        # not by torch: its error for a full disk has no errno
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with atomic_path(Path(path)) as temporary:
            temporary.write_bytes(content.getbuffer())


def require_intact(file: Path) -> None:
    """Raise an error for a missing checkpoint, a damaged one, or another kind of file."""
    if not file.is_file():
        raise ConfigError(
            f"checkpoint {file} does not exist: give the file of a run's checkpoint as --ckpt_path"
        )
    # read the whole file, without arbitrary pickles
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch raise various errors
        raise ArtifactError(
            f"checkpoint {file} is damaged ({reason(error)}): remove it to start over, or give "
            "another --ckpt_path"
        ) from error
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise ArtifactError(f"{file} is not a run's checkpoint: give one written by fit")
