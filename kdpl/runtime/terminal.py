"""What of the libraries' messages reaches a person, and how."""

import logging
import sys
import warnings

# true, but nothing that a user of kdpl can or should act on
_QUIET_WARNINGS = (
    ".*does not have many workers.*",
    ".*args parameter is intended to run from within Python.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*returned in `LightningModule.configure_callbacks` will override.*",
    ".*`LightningModule.configure_optimizers` returned `None`.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    "The dirpath has changed from .*",
    # what torchmetrics has summed over all processes is the same on all of them
    "It is recommended to use `self.log\\('(val|test|choice)/.*sync_dist=True.*",
    ".*Total length of `.*` across ranks is zero.*",
    ".*skip_none parameter was deprecated.*",
    "The `srun` command is available on your system but is not used.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
)

_QUIET_MESSAGES = (
    "💡 Tip",
    "\nDetected KeyboardInterrupt",
    "GPU available: False",
    "Seed set to",
    "TPU available",
    "`Trainer.fit` stopped",
    "Restoring states",
    "Restored all states",
    "Loaded model weights",
)


class _CurrentStderr:
    """Standard error as it is when something is written: Rich moves it above a progress bar that is on the screen."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def tame_output() -> None:
    """Keep back what nobody can act on, and keep messages out of the progress bar's line."""
    for pattern in _QUIET_WARNINGS:
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_worth_reading)
    for name in ("lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(_CurrentStderr())


def _worth_reading(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_QUIET_MESSAGES)
