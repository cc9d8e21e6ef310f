"""Checks of config files and of classes that settings name."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import yaml

from kdpl.errors import ConfigError, reason

_PACKAGE = Path(__file__).parents[1]

T = TypeVar("T")


def config_files(args: Sequence[str]) -> list[str]:
    """Return the files in a command's ``--config=`` arguments."""
    return [arg.removeprefix("--config=") for arg in args if arg.startswith("--config=")]


@cache
def shipped_configs() -> Mapping[str, Path]:
    """Return the configs that ship with kdpl, by names such as ``trainer/gpu``."""
    inside = _PACKAGE / "configs"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "configs"
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yaml"))
    }


def find_config(value: str, folder: str | None = None) -> str:
    """Return the file that an option names: a path, or a config that ships with kdpl.

    A value that is not a file and has no suffix is looked up in ``shipped_configs``, below
    ``folder`` if given. ConfigError if there is no such config.
    """
    if Path(value).is_file() or Path(value).suffix:
        return value
    name, shipped = f"{folder}/{value}" if folder else value, shipped_configs()
    if name in shipped:
        return str(shipped[name])
    if Path(value).is_dir():
        return value
    candidates = [config for config in shipped if config.startswith(folder or "")]
    near = get_close_matches(name, candidates, n=3, cutoff=0)
    near.sort(key=lambda config: not config.startswith(name))
    names = ", ".join(config.removeprefix(f"{folder}/") for config in near)
    raise ConfigError(
        f"there is no config {value!r}: give a file, or the name of one that ships "
        f"with kdpl ({names})"
    )


def with_config_files(args: Iterable[str]) -> list[str]:
    """Rewrite each ``--config NAME`` as ``--config=FILE``; see ``find_config``."""
    rest = iter(args)
    joined = [f"{arg}={next(rest, '')}" if arg == "--config" else arg for arg in rest]
    return [
        f"--config={find_config(arg.removeprefix('--config='))}"
        if arg.startswith("--config=")
        else arg
        for arg in joined
    ]


def read_config(name: str) -> dict[str, Any]:
    """Read a config file; a ConfigError if it is missing or not a YAML mapping of plain values."""
    file = Path(name)
    if not file.is_file():
        problem = "is a folder" if file.is_dir() else "does not exist"
        shipped = name.removeprefix("configs/").removesuffix(".yaml")
        hint = f", or give {shipped}, which ships with kdpl" if shipped in shipped_configs() else ""
        raise ConfigError(f"config {name} {problem}: check the path{hint}")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"config {name} is not YAML ({what}): correct it") from error
    if not isinstance(settings, dict):
        raise ConfigError(
            f"config {name} holds no settings, expected lines such as 'trainer:': correct it"
        )
    return settings


def as_list(setting: Any) -> list[Any]:
    """Return the values of a setting that may be one value, a list of values, or None."""
    if setting is None:
        return []
    return setting if isinstance(setting, list) else [setting]


def find_class(name: str, registry: Mapping[str, str], base: type[T], kind: str) -> type[T]:
    """Find a subclass of ``base`` by its dotted path, or its name in a registry of such paths."""
    remedy = (
        f"use {', '.join(registry)}, or the dotted path of a subclass of "
        f"{base.__module__}.{base.__qualname__}"
    )
    module, _, attribute = registry.get(name, name).rpartition(".")
    # a stranger's artifact may name the class: do not import modules that cannot define one
    refused = module.partition(".")[0] in sys.stdlib_module_names or "__main__" in module
    try:
        value = None if refused or not module else getattr(import_module(module), attribute, None)
    except ImportError as error:
        raise ConfigError(
            f"the {kind} {name!r} cannot be imported ({reason(error)}): {remedy}"
        ) from error
    if not isinstance(value, type) or not issubclass(value, base):
        raise ConfigError(f"there is no {kind} {name!r}: {remedy}")
    return value
