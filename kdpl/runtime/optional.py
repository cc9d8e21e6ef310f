"""Packages and modules that are imported where they are used."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from kdpl.errors import ConfigError


def optional(module: str, what: str, extra: str) -> Any:
    """Import a module of an optional package; ``what`` is the subject of the message."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"{what} needs {package}: pip install 'kdpl[{extra}]'") from error


def lazily(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a package that imports names of its modules on first use."""
    module_of = {name: module for module, of_module in names.items() for name in of_module}

    def get(name: str) -> Any:
        if name in module_of:
            return getattr(import_module(f"{package}.{module_of[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
