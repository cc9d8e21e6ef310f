"""Pictures and artifacts for those loggers that can take them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger


def log_artifact(loggers: Iterable[Logger], kind: str, path: Path, metadata: Mapping[str, Any]) -> None:
    """Hand a file over as an artifact, to W&B alone; call on one process.

    Args:
        loggers: The trainer's loggers.
        kind: Type of the artifact, such as ``class-vectors``; its name adds the run's id.
        path: The file.
        metadata: What to say of it.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            artifact = wandb.Artifact(f"{kind}-{logger.experiment.id}", type=kind, metadata=dict(metadata))
            artifact.add_file(str(path))
            logger.experiment.log_artifact(artifact)


def log_picture(loggers: Iterable[Logger], name: str, path: Path) -> None:
    """Show a picture in W&B and TensorBoard; call on one process.

    Args:
        loggers: The trainer's loggers.
        name: What it is called there, for example ``figures/confusion``.
        path: A PNG file.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            from torchvision.io import decode_image

            logger.experiment.add_image(name, decode_image(str(path)))
