"""Reports of a run that is put together from short fits, and their HTML as a parser sees it."""

import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import yaml

from kdpl.__main__ import main
from kdpl.classifier import Classifier
from kdpl.report.page import fill

HOSTILE = (
    "<script>document.documentElement.dataset.broken = 'yes'</script>",
    '"><img src=x onerror="document.documentElement.dataset.broken=\'yes\'">',
    "' onmouseover='alert(1)",
    "[red]two[/red] |  lines \\ and **marks**",
    "long " * 199 + "ago",
    "</style></title><h1>five</h1>",
    '=HYPERLINK("javascript:alert(1)")',
    "&amp; {{ 7 * 7 }} {% raw %}",
    "javascript:alert(1)",
    "𝕹𝖎𝖓𝖊 " + "é" * 100,
)
"""Class names that would break a page which does not escape them."""


def put_together(folder, teacher_run, student_run):
    """Copy two stages into a run's folder, with the stages' own tests as those of their CLIPs."""
    for stage in (teacher_run, student_run):
        shutil.copytree(stage, folder / stage.name)
        shutil.copytree(
            stage, folder / "zero_shot" / stage.name, ignore=shutil.ignore_patterns("c*")
        )
    set_in(folder / "student", teacher=str(folder / "teacher"))
    return folder


def set_in(stage, section="model", **settings):
    """Change the settings of a stage's model or data; returns its config."""
    file = stage / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config[section]["init_args"].update(settings)
    file.write_text(yaml.safe_dump(config))
    return config


def rename_classes(folder, old, new):
    """Rename the classes in a run's predictions and in its classifier."""
    names = dict(zip(old, new, strict=True))
    pandas = pytest.importorskip("pandas")
    for file in folder.rglob("test_predictions.csv"):
        table = pandas.read_csv(file, dtype=str)
        table.replace({"label": names, "prediction": names}).to_csv(file, index=False)
    change_vectors(folder / "student", class_names=new)


def with_vectors(classifier, **changes):
    """The classifier with changed class vectors."""
    vectors = replace(classifier.vectors, **changes)
    scores = classifier.companions["held_out"]
    return Classifier(
        classifier.encoder,
        vectors,
        classifier.logit_scale,
        classifier.clip,
        companions={"held_out": scores},
    )


def change_vectors(stage, **changes):
    """Change a student's class vectors, and its classifier's."""
    changed = with_vectors(Classifier.load(stage / "classifier"), **changes)
    changed.vectors.save(stage / "class_vectors.safetensors")
    changed.save(stage / "classifier")


def make(folder, out=None):
    """Make a report, timing each encoder briefly; returns its HTML."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpl.report.cost._TURNS", 2)
        assert main(["report", str(folder), *([f"--out={out}"] if out else [])]) == 0
    return (out or folder / "report.html").read_text(encoding="utf-8")


def section(name, data=None, *added, **sections):
    """The text of one section of a report, whose template shows ``data`` and reads other sections.

    ``added`` is the section itself, if it is a further one.
    """
    others = {other: {"data": values, "gap": None} for other, values in sections.items()}
    html = fill(
        f"{name}.html.jinja", data=data, added=dict(enumerate(added)), sections=others, verdict=None
    )
    return Page(html).texts["header"]


class Page(HTMLParser):
    """A report's elements as pairs of name and attributes, and the text of each section by its id."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.texts, self.section = [], [], {}, "header"
        self.feed(html)
        assert self.open == [], "an element is not closed"

    def of(self, tag):
        """Return the attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "h2":
            self.section = dict(attrs)["id"]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts[self.section] = " ".join([self.texts.get(self.section, ""), *data.split()])
