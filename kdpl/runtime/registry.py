"""Classes by name: the package's own from a table of names, anybody else's by their dotted path."""

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import TypeVar

from kdpl.errors import ConfigError, reason

T = TypeVar("T")


def find_class(name: str, registry: Mapping[str, str], base: type[T], kind: str) -> type[T]:
    """Find a class by its name in a registry, or by its dotted path.

    Args:
        name: The name.
        registry: Dotted paths of the package's own classes, by name.
        base: Class that it must be a subclass of.
        kind: What such a class is called in messages.

    Raises:
        ConfigError: There is no such class, or it is of another kind.
    """
    remedy = f"use {', '.join(registry)}, or the dotted path of a subclass of {base.__module__}.{base.__qualname__}"
    module, _, attribute = registry.get(name, name).rpartition(".")
    # an artifact of a stranger may name the class: nothing is imported that is known not to hold one
    known = module.partition(".")[0] in sys.stdlib_module_names or "__main__" in module
    try:
        found = None if known or not module else getattr(import_module(module), attribute, None)
    except ImportError as error:
        raise ConfigError(f"the {kind} {name!r} cannot be imported ({reason(error)}): {remedy}") from error
    if not isinstance(found, type) or not issubclass(found, base):
        raise ConfigError(f"there is no {kind} {name!r}: {remedy}")
    return found
