"""Pictures for loggers that can show them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger


@runtime_checkable
class ShowsPictures(Protocol):
    """A logger beyond Lightning's own that can show pictures."""

    def log_picture(self, name: str, path: Path) -> None:
        """Show a PNG file under a name such as ``figures/confusion``."""


def log_picture(loggers: Iterable[Logger], name: str, path: Path) -> None:
    """Show a PNG file in loggers that can, under a name such as ``figures/confusion``.

    Call this on one process.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            from torchvision.io import decode_image

            logger.experiment.add_image(name, decode_image(str(path)))
        elif isinstance(logger, ShowsPictures):
            logger.log_picture(name, path)
