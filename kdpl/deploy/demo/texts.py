"""The page's own texts as HTML, in which names are text whatever is in them."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kdpl.deploy.demo.visit import Answers, Demo, Visit
from kdpl.runtime.class_names import shorten

_TEMPLATES = Path(__file__).parent / "templates"
STYLE = _TEMPLATES / "style.css"

_SHOWN_CLASSES = 12
_NOTE_LENGTH = 400


def head(demo: Demo) -> str:
    """Say what the classifier is, and which classes it knows."""
    classifier = demo.classifier
    return _render(
        "head",
        names=[shorten(name) for name in classifier.class_names],
        shown=_SHOWN_CLASSES,
        teacher=classifier.vectors.clip.model,
        student=classifier.clip.model,
    )


def answers(visit: Visit, given: Answers) -> str:
    """Show the guesses as bars."""
    rows = [
        {
            "name": shorten(guess.class_name),
            "added": guess.class_name in visit.added,
            "percent": _percent(guess.probability),
            "width": f"{100 * guess.probability:.2f}",
        }
        for guess in given.guesses
    ]
    return _render("answers", rows=rows, network=given.seconds, reading=visit.seconds, milliseconds=_milliseconds)


def note(text: str, fault: bool = False) -> str:
    """Show a sentence."""
    return _render("note", text=shorten(text, _NOTE_LENGTH), fault=fault)


def _render(name: str, **values: Any) -> str:  # noqa: ANN401
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined)
    return environment.get_template(f"{name}.html.jinja").render(values)


def _percent(probability: float) -> str:
    return "< 0.1 %" if probability < 0.0005 else f"{100 * probability:.1f} %"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.1 else f"{1000 * seconds:.0f} ms"
