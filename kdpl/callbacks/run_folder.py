"""What a run keeps in its folder besides its results: its config and its checkpoints."""

from pathlib import Path

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from kdpl.files import atomic_path

CONFIG_FILE = "config.yaml"
CHECKPOINT_FOLDER = "checkpoints"
LAST_CHECKPOINT = f"{CHECKPOINT_FOLDER}/last.ckpt"


class RunConfig(SaveConfigCallback):
    """Writes the complete config of a fit into the run's folder and hands it to the loggers, once.

    Validation and test leave the config of the fit alone.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write at the start of a fit alone."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file atomically; called on one process."""
        del pl_module, stage
        text = self.parser.dump(self.config, skip_none=False)
        with atomic_path(Path(trainer.default_root_dir) / CONFIG_FILE) as temporary:
            temporary.write_text(text, encoding="utf-8")
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))


class RunCheckpoint(ModelCheckpoint):
    """Keeps the last epoch's checkpoint in the run's folder, whatever the loggers are."""

    def __init__(self) -> None:
        super().__init__(filename="last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say where, now that the folder is known."""
        self.dirpath = str(Path(trainer.default_root_dir) / CHECKPOINT_FOLDER)
        super().setup(trainer, pl_module, stage)
