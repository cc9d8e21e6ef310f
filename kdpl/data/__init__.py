"""The data of one domain: a few labelled images per class, many without labels, and those to be tested on."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdpl.data.datamodule import DomainDataModule

__all__ = ["DomainDataModule"]


def __getattr__(name: str) -> Any:
    # on first use: the classifier opens images with this package and must not need Lightning
    if name == "DomainDataModule":
        from kdpl.data.datamodule import DomainDataModule

        return DomainDataModule
    raise AttributeError(f"module 'kdpl.data' has no attribute {name!r}")
