"""A datamodule from the ``data`` sections of configs, without a trainer or a model."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from kdpl.runtime.faults import in_one_sentence


def build_data(sections: Sequence[Mapping[str, Any]], settings: Sequence[str] = ()) -> LightningDataModule:
    """Build the datamodule of ``data`` sections of configs, of which later ones win, without a trainer or a model.

    ``settings`` are further ones as on the command line, such as ``--data.init_args.shots=4``. ConfigError if they do
    not parse.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False)
    parser.set_defaults({"data": {"class_path": "kdpl.DomainDataModule"}})
    # a config of a whole run has other sections too, which this parser does not know: it gets the data section alone
    configs = [f"--config={json.dumps({'data': section})}" for section in sections]
    with in_one_sentence():
        data: LightningDataModule = parser.instantiate_classes(parser.parse_args([*configs, *settings])).data
    return data
