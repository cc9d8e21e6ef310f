"""Packages that add to kdpl: entry points of the one group ``kdpl.plugins``.

kdpl's removable folders and the packages of strangers are declared alike (docs/template.md). The
core imports none of them: it asks here what is installed.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any

Paths = Mapping[str, str]
"""Names, and for each the dotted path ``package.module:object`` of what is imported on use."""


@dataclass(frozen=True)
class Plugin:
    """Additions of a package to kdpl, by name; an entry point of ``kdpl.plugins`` names one.

    A config can name any reader, method, target or callback by its class path, which takes no
    plugin.

    Attributes:
        commands: Functions with annotated arguments and a Google docstring, which are commands of
            ``python -m kdpl``; a parameter ``rule`` or ``observers`` takes the options of others.
        models: Functions that register CLIPs (``kdpl.clip.register_model``) or kinds of addresses.
        datasets: Mappings from the names of datasets to readers (``kdpl.data.splits.Reader``).
        tasks: Subclasses of ``kdpl.tasks.Task`` for labels of another kind.
        targets: Subclasses of ``kdpl.targets.Target``, by short names for configs.
        callbacks: Functions that return callbacks of a fit or test for its LightningModule.
        companions: Subclasses of ``kdpl.classifier.companion.Companion``: files that are kept
            beside a classifier.
        handover: Functions that make companions for the classifier of a finished student.
        formats: Formats of ``export`` (``kdpl.classifier.formats.onnx.Format``).
        predict: Functions whose keyword arguments become options of ``predict``, ``serve``,
            ``boxes`` and ``watch``, and that return what makes a rule for a classifier.
        observe: Functions whose keyword arguments become options of ``predict``, and that return
            what is called with each image and its prediction.
        report: Sections of the report (``kdpl.report.page.Section``).
    """

    commands: Paths = field(default_factory=dict)
    models: Paths = field(default_factory=dict)
    datasets: Paths = field(default_factory=dict)
    tasks: Paths = field(default_factory=dict)
    targets: Paths = field(default_factory=dict)
    callbacks: Paths = field(default_factory=dict)
    companions: Paths = field(default_factory=dict)
    handover: Paths = field(default_factory=dict)
    formats: Paths = field(default_factory=dict)
    predict: Paths = field(default_factory=dict)
    observe: Paths = field(default_factory=dict)
    report: Paths = field(default_factory=dict)


def installed() -> list[Plugin]:
    """Return the plugins of all packages on ``sys.path``, in the order of their names.

    A folder of kdpl that was removed is left out, also before kdpl is installed again.
    """
    return _installed(tuple(sys.path))


@cache
def _installed(path: tuple[str, ...]) -> list[Plugin]:  # noqa: ARG001 - decides what is found
    entries = sorted(entry_points(group="kdpl.plugins"), key=lambda entry: entry.name)
    return [entry.load() for entry in entries if _exists(entry.module)]


def paths(field_name: str) -> dict[str, str]:
    """Return the additions of all plugins to one field, sorted by name."""
    additions = dict(
        addition for plugin in installed() for addition in getattr(plugin, field_name).items()
    )
    return dict(sorted(additions.items()))


def load(field_name: str, name: str) -> Any:
    """Import an addition; KeyError if there is none of this name."""
    return resolve_name(paths(field_name)[name])


def load_all(field_name: str) -> dict[str, Any]:
    """Import all additions to one field."""
    return {name: resolve_name(path) for name, path in paths(field_name).items()}


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
