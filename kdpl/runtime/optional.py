"""Optional packages, imported where they are used."""

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
