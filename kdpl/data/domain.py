"""Access to the datamodule with its type: from a trainer, or from configs without a trainer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from kdpl.data.datamodule import DomainDataModule
from kdpl.errors import ConfigError
from kdpl.runtime.faults import in_one_sentence


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


def build_data(
    sections: Sequence[Mapping[str, Any]], settings: Sequence[str] = ()
) -> DomainDataModule:
    """Build the datamodule from ``data`` sections of configs, of which later ones win.

    ``settings`` are further ones of the command line. ConfigError if they do not parse, or name
    another kind of datamodule.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(DomainDataModule, "data", fail_untyped=False)
    parser.set_defaults({"data": {"class_path": "kdpl.DomainDataModule"}})
    # only the data section: this parser does not know the other sections of a run's config
    configs = [f"--config={json.dumps({'data': section})}" for section in sections]
    with in_one_sentence():
        data: DomainDataModule = parser.instantiate_classes(
            parser.parse_args([*configs, *settings])
        ).data
    if data is None:
        raise ConfigError("the section data is empty: give a config with data.class_path")
    return data
