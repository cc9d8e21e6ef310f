"""Packages that extend kdpl: entry points of the group ``kdpl.plugins``.

kdpl's removable folders and third-party packages are declared alike (docs/template.md). The core
imports none of them: it asks here what is installed.
"""

import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any, NamedTuple

Paths = Mapping[str, str]
"""Dotted paths ``package.module:object`` by name, imported on use."""

_NONE: Paths = MappingProxyType({})


class Plugin(NamedTuple):
    """Additions of a package to kdpl, by name; an entry point of ``kdpl.plugins`` names one.

    A config can name any reader, method, target or callback by its class path without a plugin.

    Attributes:
        commands: Functions with annotated arguments and a Google docstring that become commands of
            ``python -m kdpl``; a parameter ``rule`` takes other plugins' options.
        models: Functions that register CLIPs (``kdpl.clip.register_model``) or kinds of addresses.
        datasets: Mappings from names of datasets to readers (``kdpl.data.splits.Reader``).
        tasks: Subclasses of ``kdpl.tasks.Task`` for labels of another kind.
        targets: Subclasses of ``kdpl.targets.Target``, by short names for configs.
        callbacks: Functions that return callbacks of a fit or test for its LightningModule.
        companions: Subclasses of ``kdpl.classifier.companion.Companion``: files kept with a
            classifier.
        handover: Functions that make companions for the classifier of a finished student.
        formats: Formats of ``export`` (``kdpl.classifier.formats.onnx.Format``).
        predict: Functions whose keyword arguments become options of ``predict`` and ``serve``,
            and that return a function from a classifier to a rule.
        report: Sections of the report (``kdpl.report.page.Section``).
    """

    commands: Paths = _NONE
    models: Paths = _NONE
    datasets: Paths = _NONE
    tasks: Paths = _NONE
    targets: Paths = _NONE
    callbacks: Paths = _NONE
    companions: Paths = _NONE
    handover: Paths = _NONE
    formats: Paths = _NONE
    predict: Paths = _NONE
    report: Paths = _NONE


def installed() -> list[Plugin]:
    """Return the plugins of all packages on ``sys.path``, sorted by name.

    A removed folder of kdpl is left out, even before kdpl is installed again.
    """
    return _installed(tuple(sys.path))


@cache
def _installed(path: tuple[str, ...]) -> list[Plugin]:  # noqa: ARG001 - decides what is found
    entries = sorted(entry_points(group="kdpl.plugins"), key=lambda entry: entry.name)
    return [entry.load() for entry in entries if _exists(entry.module)]


def paths(field_name: str) -> dict[str, str]:
    """Return the additions of all plugins to a field, sorted by name."""
    additions = dict(
        addition for plugin in installed() for addition in getattr(plugin, field_name).items()
    )
    return dict(sorted(additions.items()))


def load_all(field_name: str) -> dict[str, Any]:
    """Import all additions to a field."""
    return {name: resolve_name(path) for name, path in paths(field_name).items()}


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
