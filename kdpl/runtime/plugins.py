"""Plugins of rooms and other packages: entry points of ``kdpl.commands``, ``kdpl.formats``, ….

docs/template.md lists the groups. The core imports no room: it asks here what is installed.
"""

import sys
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from importlib.util import find_spec
from typing import Any, cast

from kdpl.errors import ConfigError


def plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of ``kdpl.GROUP`` by name, in the order of their names.

    Those of a room whose folder was removed are left out, also before kdpl is installed again.
    """
    return _plugins(group, tuple(sys.path))


@cache
def _plugins(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    # for each of its callbacks, readers and models, a command asks again
    entries = sorted(_installed(path).select(group=f"kdpl.{group}"), key=lambda entry: entry.name)
    return {entry.name: entry for entry in entries if _is_there(entry.module)}


@cache
def _installed(path: tuple[str, ...]) -> EntryPoints:  # noqa: ARG001 - what is found depends on it
    # reads a file of each installed package
    return cast(EntryPoints, entry_points())


def load(group: str, name: str) -> Any:
    """Import what an entry point names."""
    return plugins(group)[name].load()


def load_all(group: str) -> dict[str, Any]:
    """Import all that the entry points of a group name, see ``load``."""
    return {name: entry.load() for name, entry in plugins(group).items()}


def required(group: str, setting: str, room: str) -> Any:
    """Import what a room names for a setting; a ConfigError if it was removed."""
    for found in load_all(group).values():
        return found
    raise ConfigError(f"{setting} needs the room {room}, which was removed: leave it out")


def paths(group: str) -> dict[str, str]:
    """Return the dotted paths that the entry points of a group stand for, by name."""
    return {name: entry.value.replace(":", ".") for name, entry in plugins(group).items()}


def _is_there(module: str) -> bool:
    if not module.startswith("kdpl."):
        return True
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
