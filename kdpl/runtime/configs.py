"""Checks of config files and of classes that settings name.

LightningCLI composes the files (``kdpl/cli/stage_cli.py``).
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kdpl.errors import ConfigError, reason

_PACKAGE = Path(__file__).parents[1]
_MOST_BYTES = 2**20
_MOST_VALUES = 100_000

T = TypeVar("T")


def config_files(args: Sequence[str]) -> list[str]:
    """Return the files that a command's arguments name with ``--config``."""
    files = [after for arg, after in pairwise(args) if arg == "--config"]
    return files + [arg.removeprefix("--config=") for arg in args if arg.startswith("--config=")]


@cache
def shipped_configs() -> Mapping[str, Path]:
    """Return the configs that ship with kdpl, by names such as ``trainer/gpu``.

    They are in a wheel's package, or beside a clone's.
    """
    inside = _PACKAGE / "configs"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "configs"
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yaml"))
    }


def find_config(value: str, folder: str | None = None) -> str:
    """Return the file that an option means: itself, or a config that ships with kdpl.

    A value that is no file and has no suffix is a name of ``shipped_configs``; an option whose
    configs lie in one ``folder`` takes it without that. ConfigError if there is none of that name.
    """
    if Path(value).is_file() or Path(value).suffix:
        return value
    name, known = f"{folder}/{value}" if folder else value, shipped_configs()
    if name in known:
        return str(known[name])
    if Path(value).is_dir():
        return value
    near = get_close_matches(
        name, [each for each in known if each.startswith(folder or "")], n=3, cutoff=0
    )
    names = ", ".join(each.removeprefix(f"{folder}/") for each in near)
    raise ConfigError(
        f"there is no config {value!r}: give a file, or the name of one that ships "
        f"with kdpl ({names})"
    )


def with_config_files(args: Sequence[str]) -> list[str]:
    """Replace names that a command's ``--config`` arguments give by files; see ``find_config``."""
    expanded: list[str] = []
    for arg in args:
        if arg.startswith("--config="):
            arg = f"--config={find_config(arg.removeprefix('--config='))}"
        expanded.append(find_config(arg) if expanded[-1:] == ["--config"] else arg)
    return expanded


def require_configs(files: Iterable[str]) -> None:
    """Refuse config files that ``read_config`` cannot read."""
    for name in files:
        read_config(name)


def read_config(name: str) -> dict[str, Any]:
    """Read a config file.

    It is a ConfigError if the file is missing, not a YAML mapping of plain values, or far too
    large.
    """
    file = Path(name)
    if not file.is_file():
        shipped = name.removeprefix("configs/").removesuffix(".yaml")
        remedy = (
            f", or give {shipped}, which ships with kdpl" if shipped in shipped_configs() else ""
        )
        fault = "is a folder" if file.is_dir() else "does not exist"
        raise ConfigError(f"config {name} {fault}: check the path{remedy}")
    if file.stat().st_size > _MOST_BYTES:
        raise ConfigError(
            f"config {name} is larger than {_MOST_BYTES} bytes, as no config is: check the path"
        )
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        values = _size(settings, {})
    except RecursionError as error:
        raise ConfigError(
            f"config {name} has sections within sections without end: correct it"
        ) from error
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigError(f"config {name} is not YAML ({_place(error)}): correct it") from error
    if not isinstance(settings, dict):
        raise ConfigError(
            f"config {name} holds no settings, expected lines such as 'trainer:': correct it"
        )
    if values > _MOST_VALUES:
        raise ConfigError(
            f"config {name} has more than {_MOST_VALUES} values once its aliases are written out: "
            "correct it"
        )
    return settings


def has_callback(config: Mapping[str, Any], name: str) -> bool:
    """Return whether the config of a run names a trainer's callback of this class."""
    given = (config.get("trainer") or {}).get("callbacks") or []
    named = given if isinstance(given, list) else [given]
    paths = (str(each.get("class_path")) for each in named if isinstance(each, dict))
    return any(path.endswith(f".{name}") for path in paths)


def _size(tree: object, known: dict[int, float]) -> float:
    """Count the values with all aliases written out; infinite for a section that holds itself."""
    if not isinstance(tree, dict | list):
        return 1
    if id(tree) not in known:
        known[id(tree)] = float("inf")
        parts = tree.values() if isinstance(tree, dict) else tree
        known[id(tree)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(tree)]


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark is not None and problem else reason(error)


def find_class(name: str, registry: Mapping[str, str], base: type[T], kind: str) -> type[T]:
    """Find a subclass of ``base`` by its name in a registry of dotted paths, or by its dotted path.

    It is a ConfigError if there is none.

    ``kind`` is what such a class is called in messages.
    """
    remedy = (
        f"use {', '.join(registry)}, or the dotted path of a subclass of "
        f"{base.__module__}.{base.__qualname__}"
    )
    module, _, attribute = registry.get(name, name).rpartition(".")
    # an artifact of a stranger may name the class: nothing is imported that is known not to hold
    # one
    known = module.partition(".")[0] in sys.stdlib_module_names or "__main__" in module
    try:
        value = None if known or not module else getattr(import_module(module), attribute, None)
    except ImportError as error:
        raise ConfigError(
            f"the {kind} {name!r} cannot be imported ({reason(error)}): {remedy}"
        ) from error
    if not isinstance(value, type) or not issubclass(value, base):
        raise ConfigError(f"there is no {kind} {name!r}: {remedy}")
    return value
