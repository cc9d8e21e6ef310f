"""The readers of datasets, by the name that ``data.init_args.dataset`` gives."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from kdpl.data.readers.digits import Digits
from kdpl.data.readers.folder import Folder
from kdpl.data.readers.table import Table
from kdpl.data.splits import Reader
from kdpl.errors import ConfigError
from kdpl.runtime import plugins

READERS: dict[str, Callable[..., Reader]] = {"digits": Digits, "folder": Folder, "table": Table}
"""Readers of the core; plugins add further ones."""


def readers() -> dict[str, Callable[..., Reader]]:
    """Return all readers by their names."""
    return {
        name: reader
        for some in (READERS, *plugins.load_all("datasets").values())
        for name, reader in some.items()
    }


def build_reader(dataset: str | Reader, **options: Any) -> Reader:
    """Build a dataset's reader from settings of the data section, where None means not given.

    A reader is returned as it is. ConfigError if the name is unknown, or the settings are not the
    reader's.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(dataset, Reader):
        if given:
            name = next(iter(given))
            raise ConfigError(
                f"dataset is a {type(dataset).__name__} with init_args of its own: remove {name}"
            )
        return dataset
    known_readers = readers()
    if dataset not in known_readers:
        known = ", ".join(sorted(known_readers))
        raise ConfigError(
            f"dataset {dataset!r} is unknown: choose one of {known}, or give a Reader's class path"
        )
    parameters = signature(known_readers[dataset]).parameters
    for name in given.keys() - parameters:
        raise ConfigError(f"dataset {dataset!r} takes no {name}: remove {name}: {given[name]}")
    if "root" in parameters and "root" not in given:
        raise ConfigError(f"dataset {dataset!r} needs root: set it to where the dataset lies")
    return known_readers[dataset](**given)
