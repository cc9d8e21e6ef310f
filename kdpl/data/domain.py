"""The datamodule that a trainer runs, with its type."""

from lightning.pytorch import Trainer

from kdpl.data.datamodule import DomainDataModule
from kdpl.errors import ConfigError


def domain_of(trainer: Trainer) -> DomainDataModule:
    """Return a trainer's datamodule; a ConfigError if it is not a ``DomainDataModule``."""
    # Lightning sets the attribute without declaring it
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, DomainDataModule):
        module = type(trainer.lightning_module).__name__
        raise ConfigError(
            f"{module} needs to know the class names: run it with a DomainDataModule as datamodule"
        )
    return data
