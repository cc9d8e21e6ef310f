import pytest

from kdpl.report.charts import Axis, interval_chart, line_chart


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (13.1, 95, ["20", "40", "60", "80"]),
        (0, 400, ["0", "100", "200", "300", "400"]),
        (0.013, 0.029, ["0.015", "0.020", "0.025"]),
    ],
)
def test_ticks_are_round_and_within_the_axis(low, high, texts):
    axis = Axis(low, high, 0, 100)
    assert [text for _, text in axis.ticks] == texts
    assert all(0 <= x <= 100 for x, _ in axis.ticks)


def test_a_chart_has_its_lowest_value_at_the_bottom_and_later_epochs_to_the_right():
    chart = line_chart("loss", {"loss": [(1, 4.0), (2, 3.0), (3, 1.0)], "none": []})
    assert [line["name"] for line in chart["lines"]] == ["loss"]
    assert chart["lines"][0]["points"] == [(48, 12), (219, pytest.approx(12 + 174 / 3)), (390, 186)]
    assert chart["lines"][0]["last"] == 1.0


def test_a_flat_line_is_drawn_and_no_values_are_not():
    assert len(line_chart("accuracy", {"all": [(1, 0.5), (2, 0.5)]})["lines"][0]["points"]) == 2
    assert line_chart("accuracy", {"all": []}) is None


def test_an_interval_includes_its_value_and_the_chart_all_intervals():
    chart = interval_chart([("a", 0.7, 0.6, 0.8), ("b", 0.99, 0.97, 1.0)])
    for mark in chart["marks"]:
        assert chart["x"].start <= mark["low"] < mark["value"] < mark["high"] <= chart["x"].end
    assert chart["marks"][0]["y"] < chart["marks"][1]["y"] < chart["height"]
