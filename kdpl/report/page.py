"""Page of the report: its sections, or a sentence where a section cannot be made."""

import base64
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kdpl import __version__
from kdpl.report.accuracy import accuracies, classes, confusions, find_examples
from kdpl.report.cost import costs
from kdpl.report.run_folder import Run, attempt
from kdpl.report.training import learning_curves, training
from kdpl.runtime.class_names import shorten
from kdpl.runtime.messages import inform
from kdpl.tasks import MULTI_CLASS

_TEMPLATES = Path(__file__).parent / "templates"
# in the order of computation; each has a heading in ``own`` of report.html.jinja, which orders the
# page, and a template of its name; further sections are a ``Section`` each
_SECTIONS: dict[str, Callable[[Run], Any]] = {
    "training": training,
    "accuracy": accuracies,
    "classes": classes,
    "confusions": confusions,
    "disagreement": find_examples,
    "curves": learning_curves,
    "cost": costs,
}

_ONE_CLASS = ("accuracy", "classes", "confusions", "disagreement")
"""Sections for runs with one class per image."""

_FURTHER = {
    "calibration": "kdpl.confidence.report:CALIBRATION",
    "refined": "kdpl.report.refined:SECTION",
    "rejection": "kdpl.confidence.report:REJECTION",
    "several": "kdpl.multilabel.report:SECTION",
}
"""Further sections by name, as dotted paths: their files import this one."""


class Section(NamedTuple):
    """A further section of the report.

    Attributes:
        title: Its heading.
        make: Collects its data from a run. The page shows a KdplError in place of the section;
            None leaves the section out.
        template: Its part of the page, a template of ``data`` with a file name of its own.
        after: Name of the section that it follows; with an unknown name it is the last.
        wide: Whether it takes the whole width.
        task: Name of the task that has the section.
    """

    title: str
    make: Callable[[Run], Any]
    template: Path
    after: str
    wide: bool = True
    task: str = MULTI_CLASS.name


def render(run: Run) -> str:
    """Return a run's report as HTML."""
    added: dict[str, Section] = {name: resolve_name(path) for name, path in _FURTHER.items()}
    # the sections of this task
    tasks = dict.fromkeys(_SECTIONS, run.task) | dict.fromkeys(_ONE_CLASS, MULTI_CLASS.name)
    tasks |= {name: section.task for name, section in added.items()}
    makers = _SECTIONS | {name: section.make for name, section in added.items()}
    sections = {}
    for name, make in makers.items():
        data, gap = attempt(partial(make, run)) if tasks[name] == run.task else (None, None)
        sections[name] = {"data": data, "gap": gap}
    # say first how the student compares with linear probes
    collected = [section["data"] for section in sections.values()]
    verdicts = (data.get("verdict") for data in collected if isinstance(data, dict))
    verdict = next(filter(None, verdicts), None)
    if verdict is not None:
        inform(verdict)
    run_facts = {"name": run.folder.resolve().name, "untuned": run.untuned, "verdict": verdict}
    return fill("report.html.jinja", sections=sections, added=added, **run_facts)


def fill(template: str, **values: Any) -> str:
    """Render a page's template."""
    # the template of a further section lies beside its code
    folders = [section.template.parent for section in values.get("added", {}).values()]
    environment = Environment(
        loader=FileSystemLoader([_TEMPLATES, *folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"name": shorten, "points": _points, "of": _of}
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    script = (_TEMPLATES / "sort.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        **values,
        script=script,
        # the page's policy allows this script alone
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        made=datetime.now(tz=UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=f"kdpl {__version__}, torch {torch.__version__}",
    )


def _of(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


def _points(difference: float) -> str:
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")
