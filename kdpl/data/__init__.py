"""The data of one domain: a few labelled images per class, many without labels, and those to be tested on."""

from kdpl.data.datamodule import DomainDataModule

__all__ = ["DomainDataModule"]
