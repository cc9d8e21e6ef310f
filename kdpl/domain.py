"""What a stage asks of the data: the names of the classes, and which of them the teacher may be tuned on."""

from typing import Protocol, runtime_checkable

from lightning.pytorch import LightningModule
from torch import Tensor

from kdpl.errors import ConfigError


@runtime_checkable
class Domain(Protocol):
    """The side of the datamodule that both stages see.

    Attributes:
        class_names: All C class names, by label.
        num_base: How many of them, the first ones, are base classes; None where there is no such split.
        tuning_class_names: The names that the teacher is tuned on: the base ones where there is a split.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def num_base(self) -> int | None: ...  # noqa: D102

    @property
    def tuning_class_names(self) -> tuple[str, ...]: ...  # noqa: D102

    def preview(self, n: int, image_size: int) -> Tensor:
        """Give up to n unlabelled images, uint8 [n, 3, image_size, image_size]."""
        ...


def domain_of(module: LightningModule) -> Domain:
    """Give the domain that a module is being run on.

    Raises:
        ConfigError: The trainer was not given a datamodule that knows its classes.
    """
    datamodule = getattr(module.trainer, "datamodule", None)
    if not isinstance(datamodule, Domain):
        raise ConfigError(
            f"{type(module).__name__} needs to know the class names: run it with a DomainDataModule as datamodule"
        )
    return datamodule
