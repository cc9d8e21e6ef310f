"""The readers of datasets, by the name that ``data.init_args.dataset`` gives."""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from kdpl.benchmark.readers import BENCHMARKS, BenchmarkSet
from kdpl.data.readers.digits import Digits
from kdpl.data.readers.folder import Folder
from kdpl.data.readers.letters import Letters
from kdpl.data.readers.table import Table
from kdpl.data.splits import Reader
from kdpl.errors import ConfigError

READERS: dict[str, Callable[..., Reader]] = {
    "digits": Digits,
    "folder": Folder,
    "letters": Letters,
    "table": Table,
    **{name: partial(BenchmarkSet, name) for name in BENCHMARKS},
}


def build_reader(dataset: str | Reader, **options: Any) -> Reader:
    """Build the reader of a dataset from settings of the data section, of which None means not given.

    A reader is returned as it is. ConfigError if the name is unknown, or the settings are not the reader's.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(dataset, Reader):
        if given:
            name = next(iter(given))
            raise ConfigError(f"dataset is a {type(dataset).__name__} with init_args of its own: remove {name}")
        return dataset
    if dataset not in READERS:
        known = ", ".join(sorted(READERS))
        raise ConfigError(f"dataset {dataset!r} is unknown: choose one of {known}, or give a Reader's class path")
    parameters = signature(READERS[dataset]).parameters
    for name in given.keys() - parameters:
        raise ConfigError(f"dataset {dataset!r} takes no {name}: remove {name}: {given[name]}")
    if "root" in parameters and "root" not in given:
        raise ConfigError(f"dataset {dataset!r} needs root: set it to where the dataset lies")
    return READERS[dataset](**given)
