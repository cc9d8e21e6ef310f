"""The complete config of a fit in the run's folder."""

from pathlib import Path

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from kdpl.runtime.files import write_text
from kdpl.runtime.run_folder import CONFIG_FILE, LAST, PREVIOUS


class RunConfig(SaveConfigCallback):
    """Writes the config of a fit into the run's folder and hands it to the loggers, once.

    Validation and test leave the config of the fit alone, and so does a fit that fails before its first checkpoint.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing yet: data and model are checked first."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config."""
        self._save_once(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config of a fit without epochs, in which no training starts."""
        self._save_once(trainer, pl_module)

    def _save_once(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not self.already_saved:
            self.already_saved = True
            self.save_config(trainer, pl_module, "fit")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the config again unless there is a checkpoint to resume from."""
        folder = Path(trainer.default_root_dir)
        begun = any((folder / name).is_file() for name in (LAST, PREVIOUS))
        if trainer.is_global_zero and self.already_saved and not begun:
            (folder / CONFIG_FILE).unlink(missing_ok=True)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file atomically; called on one process."""
        text = self.parser.dump(self.config, skip_none=False)
        write_text(Path(trainer.default_root_dir) / CONFIG_FILE, text)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))
