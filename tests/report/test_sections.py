import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import noise
from torch import nn

from kdpl.data.sources import open_source
from kdpl.report.accuracy import class_rows, confusions, disagreements, with_thumbnails
from kdpl.report.charts import Axis, line_chart
from kdpl.report.cost import Encoder
from kdpl.report.page import Section, fill
from kdpl.runtime.predictions import ImagePrediction


def test_ticks_are_round_and_within_the_axis():
    for low, high, texts in (
        (13.1, 95, ["20", "40", "60", "80"]),
        (0, 400, ["0", "100", "200", "300", "400"]),
        (0.013, 0.029, ["0.015", "0.020", "0.025"]),
    ):
        ticks = Axis(low, high, 0, 100).ticks
        assert [text for _, text in ticks] == texts
        assert all(0 <= x <= 100 for x, _ in ticks)


def test_a_chart_has_its_lowest_value_at_the_bottom_and_later_epochs_to_the_right_if_there_are_any():
    chart = line_chart("loss", {"loss": [(1, 4.0), (2, 3.0), (3, 1.0)], "none": []})
    assert list(chart["lines"]) == ["loss"]
    places = [(chart["x"](epoch), chart["y"](value)) for epoch, value in chart["lines"]["loss"]]
    assert places == [(48, 12), (219, pytest.approx(12 + 174 / 3)), (390, 186)]
    level = line_chart("accuracy", {"all": [(1, 0.5), (2, 0.5)]})
    assert [level["y"](value) for _, value in level["lines"]["all"]] == [186, 186]
    assert line_chart("accuracy", {"all": []}) is None


def test_a_section_follows_the_one_that_it_names_and_is_the_last_if_there_is_none():
    follows = {"late": "removed", "later": "late", "early": "training", "next": "early"}
    added = {
        name: Section(name.title(), lambda _: None, Path("part.html.jinja"), after)
        for name, after in follows.items()
    }
    empty = ("accuracy", "classes", "confusions", "disagreement", "curves")
    sections = {name: {"data": None, "gap": None} for name in empty}
    sections |= {name: {"data": None, "gap": "missing"} for name in ("training", "cost", *added)}
    values = {"verdict": None, "untuned": False, "name": "run"}
    page = fill("report.html.jinja", sections=sections, added=added, **values)
    shown = re.findall(r'<section.* aria-labelledby="(\w+)">', page)
    assert shown == ["training", "early", "next", "cost", "late", "later"]


def test_a_parameter_in_two_modules_counts_once():
    inner = nn.Linear(3, 4)
    assert Encoder(inner, [nn.Sequential(inner, nn.ReLU()), inner], 8).parameters == 16


NAMES = ("a", "b", "c", "unseen")
LABELS = "aaaabbbcc"


def predictions(predicted):
    return [
        ImagePrediction(i, f"{i}.png", y, p, 0.5, ord(y) - ord("a"), ord(p) - ord("a"))
        for i, (y, p) in enumerate(zip(LABELS, predicted, strict=True))
    ]


TEACHER, STUDENT = predictions("aaaabbbca"), predictions("aabcbbacc")


def test_rows_start_with_the_students_largest_losses_or_the_only_models_worst_class():
    rows = class_rows(NAMES, TEACHER, STUDENT)
    assert [tuple(r) for r in rows] == [
        (0, "a", 4, 1.0, 0.5),
        (1, "b", 3, 1.0, pytest.approx(2 / 3)),
        (2, "c", 2, 0.5, 1.0),
    ]
    assert [r.difference for r in rows] == pytest.approx([-0.5, -1 / 3, 0.5])
    worst = class_rows(NAMES, TEACHER, None)[0]
    assert (worst.name, worst.teacher, worst.student, worst.difference) == ("c", 0.5, None, None)
    assert [r.name for r in class_rows(NAMES, None, STUDENT)] == ["a", "b", "c"]


def confusions_of(names, predicted):
    run = SimpleNamespace(vectors=SimpleNamespace(class_names=names), student=None)
    run.main = SimpleNamespace(predictions=predicted)
    return confusions(run)


def test_the_matrix_has_true_classes_as_rows_and_the_largest_confusions_come_first():
    rows = [[2, 1, 1, 0], [1, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    assert confusions_of(NAMES, STUDENT)["matrix"] == rows
    shown = confusions_of(NAMES, predictions("abbcbbacc"))
    largest = [("a", "b", 2, 0.5), ("a", "c", 1, 0.25), ("b", "a", 1, pytest.approx(1 / 3))]
    assert (shown["largest"], shown["wrong"]) == (largest, 4)


def test_two_classes_of_one_name_are_not_correct_for_each_other():
    twins = [replace(p, label="a", prediction="a") for p in predictions("abbcbbacc")]
    assert [p.correct for p in twins] == [p.correct for p in predictions("abbcbbacc")]
    names = ("a", "a", "a", "unseen")
    shown, plain = (confusions_of(*args) for args in ((names, twins), (NAMES, twins)))
    assert (shown["matrix"], shown["wrong"]) == (plain["matrix"], 4)
    rows = [r[1:] for r in class_rows(names, None, twins)]
    assert rows == [("a", 4, None, 0.25), ("a", 3, None, 2 / 3), ("a", 2, None, 1.0)]


def test_an_image_that_cannot_be_read_is_left_out_alone_and_the_first_one_is_named(tmp_path):
    examples = [{"source": str(tmp_path / f"{i}.png"), "number": i} for i in range(4)]
    for i in (0, 3):
        noise(8, 8).save(examples[i]["source"])
    Path(examples[2]["source"]).write_bytes(b"no image")
    data = SimpleNamespace(splits=SimpleNamespace(open_image=open_source))
    shown = with_thumbnails(lambda: data, examples)
    assert [example["number"] for example in shown["shown"]] == [0, 3]
    assert all(example["uri"].startswith("data:image/webp") for example in shown["shown"])
    assert examples[1]["source"] in shown["gap"]


def test_disagreements_are_sorted_by_who_is_correct():
    def pair(label, *numbers):
        return tuple(ImagePrediction(0, "x.png", "one", "name", 0.5, label, n) for n in numbers)

    pairs = [pair(0, 0, 0), pair(0, 0, 1), pair(0, 1, 0), pair(0, 1, 2), pair(0, 1, 1)]
    assert disagreements(pairs) == ([pairs[1]], [pairs[2]], [pairs[3]])
