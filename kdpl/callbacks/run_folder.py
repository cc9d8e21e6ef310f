"""What a run keeps in its folder besides its results: its config and its checkpoints."""

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from kdpl.callbacks.checkpoint_files import remove_previous
from kdpl.runtime.files import atomic_path
from kdpl.runtime.logged_first import log_epoch
from kdpl.runtime.run_folder import CHECKPOINTS_FOLDER, LAST, PREVIOUS, handed_over

CONFIG_FILE = "config.yaml"


class RunConfig(SaveConfigCallback):
    """Writes the complete config of a fit into the run's folder and hands it to the loggers, once.

    Validation and test leave the config of the fit alone, and so does a fit that fails before its first checkpoint.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait until data and model have been checked; a config without a run helps nobody."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        self._save_once(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write after a fit of no epochs, in which no training starts."""
        self._save_once(trainer, pl_module)

    def _save_once(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not self.already_saved:
            self.already_saved = True
            self.save_config(trainer, pl_module, "fit")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the config away again when there is nothing yet that a second start could go on from."""
        del pl_module, exception
        folder = Path(trainer.default_root_dir)
        begun = any((folder / name).is_file() for name in (LAST, PREVIOUS))
        if trainer.is_global_zero and self.already_saved and not begun:
            (folder / CONFIG_FILE).unlink(missing_ok=True)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file atomically; called on one process."""
        del pl_module, stage
        text = self.parser.dump(self.config, skip_none=False)
        with atomic_path(Path(trainer.default_root_dir) / CONFIG_FILE) as temporary:
            temporary.write_text(text, encoding="utf-8")
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))


class RunCheckpoint(ModelCheckpoint):
    """Keeps the last checkpoint in the run's folder, and until the run ends the one before as well.

    Args:
        every_n_steps: Steps between checkpoints; None: one at the end of each epoch.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__(
            filename=Path(LAST).stem,
            save_top_k=1,
            enable_version_counter=False,
            every_n_train_steps=every_n_steps,
            save_on_train_epoch_end=every_n_steps is None,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say where, now that the folder is known."""
        self.dirpath = str(Path(trainer.default_root_dir) / CHECKPOINTS_FOLDER)
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Save between two steps of an epoch, not after its last.

        Of a checkpoint from there Lightning takes the epoch for finished, and leaves out its validation and what comes
        at its end; the one that is written there comes a moment later.
        """
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at an epoch's end, once its metrics are logged."""
        log_epoch(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the checkpoint before the last one, once the run has come to its end."""
        del pl_module
        if trainer.is_global_zero and handed_over(Path(trainer.default_root_dir)):
            remove_previous(Path(trainer.default_root_dir))
