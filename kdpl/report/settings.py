"""Which settings of a fit are not the defaults of what they are settings of."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from importlib import import_module
from typing import Any, NamedTuple

from lightning.pytorch import Trainer

# kdpl's command line has defaults of its own for these, and where a run is has been said already
_LEFT_OUT = ("trainer.logger", "trainer.use_distributed_sampler", "trainer.enable_model_summary")


class Setting(NamedTuple):
    """A setting.

    Attributes:
        name: As on the command line.
        value: What it was.
        default: What it would have been; None where it must be given.
    """

    name: str
    value: str
    default: str | None


def differing_settings(config: Mapping[str, Any]) -> list[Setting]:
    """List a fit's settings of model, data and trainer that are not the defaults.

    Args:
        config: The complete config, as a fit leaves it.
    """
    found = []
    for section in ("model", "data"):
        settings = config[section]
        defaults = _defaults_of(str(settings.get("class_path")))
        found += _compare(f"{section}.init_args", settings["init_args"], defaults)
    return found + _compare("trainer", config.get("trainer") or {}, _defaults(Trainer))


def _compare(prefix: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Setting]:
    given, known = _flatten(values, prefix), _flatten(defaults, prefix)
    return [
        Setting(name, _text(value), _text(known[name]) if name in known else None)
        for name, value in given.items()
        if not name.startswith(_LEFT_OUT) and (name not in known or value != known[name])
        # an empty group, such as averaging without any
        if not (value is None and name not in known)
    ]


def _defaults_of(class_path: str) -> dict[str, Any]:
    module, _, name = class_path.rpartition(".")
    try:
        return _defaults(getattr(import_module(module), name))
    except (ImportError, AttributeError, ValueError):
        return {}  # all settings are shown then


def _defaults(kind: Any) -> dict[str, Any]:  # noqa: ANN401
    parameters = inspect.signature(kind).parameters.values()
    known = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {n: asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for n, v in known.items()}


def _flatten(tree: Any, prefix: str) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {name: value for key, sub in tree.items() for name, value in _flatten(sub, f"{prefix}.{key}").items()}


def _text(value: Any) -> str:  # noqa: ANN401
    return "none" if value is None else str(value)
