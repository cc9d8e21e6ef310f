"""Readers of datasets by name, for ``data.init_args.dataset``."""

from collections.abc import Callable
from inspect import signature
from typing import Any

from kdpl.data.readers import benchmark
from kdpl.data.readers.digits import Digits
from kdpl.data.readers.folder import Folder
from kdpl.data.readers.table import Table
from kdpl.data.splits import Reader
from kdpl.errors import ConfigError

READERS: dict[str, Callable[..., Reader]] = {
    "digits": Digits,
    "folder": Folder,
    "table": Table,
    **benchmark.READERS,
}
"""Readers by name."""

_SETTINGS = {
    "class_names": "classes.names",
    "class_text": "classes.text",
    "label_separator": "classes.label_separator",
    "background": "reading.background",
}
"""Settings of the data section, by parameters of readers that have other names."""


def build_reader(dataset: str | Reader, **options: Any) -> Reader:
    """Build a dataset's reader from settings of the data section, where None means not given."""
    settings = {name: value for name, value in options.items() if value is not None}
    if isinstance(dataset, Reader):
        if settings:
            name = next(iter(settings))
            raise ConfigError(
                f"dataset is a {type(dataset).__name__}, set by its init_args: "
                f"remove {_SETTINGS.get(name, name)}"
            )
        return dataset
    if dataset not in READERS:
        names = ", ".join(sorted(READERS))
        raise ConfigError(
            f"dataset {dataset!r} is unknown: choose one of {names}, or give a Reader's class path"
        )
    parameters = signature(READERS[dataset]).parameters
    for name in settings.keys() - parameters:
        setting = _SETTINGS.get(name, name)
        raise ConfigError(
            f"dataset {dataset!r} takes no {setting}: remove {setting}: {settings[name]}"
        )
    if "root" in parameters and "root" not in settings:
        raise ConfigError(f"dataset {dataset!r} needs root: set it to where the dataset lies")
    return READERS[dataset](**settings)
