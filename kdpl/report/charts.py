"""Where the lines and marks of the report's charts are; the templates draw them as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A linear axis: values to pixels.

    Attributes:
        low: Value at ``start``.
        high: Value at ``end``.
        start: Pixel.
        end: Pixel.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Give the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Two to seven round values within the axis: pixel and text."""
        step = _round_step((self.high - self.low) / 6)
        first = -floor(-self.low / step + 1e-9)
        last = floor(self.high / step + 1e-9)
        digits = max(0, -floor(log10(step)))
        return [(self(i * step), f"{i * step:.{digits}f}") for i in range(first, last + 1)]


def _round_step(rough: float) -> float:
    power = 10.0 ** floor(log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: What it shows.
        points: Its corners in pixels, as SVG's ``points``.
        last: Its last value.
    """

    name: str
    points: str
    last: float


@dataclass(frozen=True)
class LineChart:
    """A chart of lines.

    Attributes:
        title: What is up.
        width: Pixels.
        height: Pixels.
        x: The epochs.
        y: The values.
        lines: The lines; at least one.
    """

    title: str
    width: int
    height: int
    x: Axis
    y: Axis
    lines: list[Line]


def line_chart(title: str, lines: dict[str, Sequence[Point]], y_range: Point | None = None) -> LineChart | None:
    """Lay out a chart of lines over epochs.

    Args:
        title: What is up.
        lines: (epoch, value) pairs by name; empty ones are left out.
        y_range: Lowest and highest value of the axis; None takes those of the values.

    Returns:
        The chart; None where there is no value.
    """
    drawn = {name: line for name, line in lines.items() if line}
    if not drawn:
        return None
    width, height = 400, 220
    epochs = [x for line in drawn.values() for x, _ in line]
    values = [y for line in drawn.values() for _, y in line]
    x = Axis(min(epochs), max(*epochs, min(epochs) + 1), 48, width - 10)
    low, high = y_range or (min(values), max(values))
    y = Axis(low, high if high > low else low + 1, height - 34, 12)
    return LineChart(
        title,
        width,
        height,
        x,
        y,
        [Line(n, " ".join(f"{x(a)},{y(b)}" for a, b in line), line[-1][1]) for n, line in drawn.items()],
    )


@dataclass(frozen=True)
class Mark:
    """A value with its interval, in a row of a chart.

    Attributes:
        name: What it is of.
        y: Middle of the row in pixels.
        value: Pixel.
        low: Pixel.
        high: Pixel.
    """

    name: str
    y: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class IntervalChart:
    """A chart of accuracies with their intervals, a row each.

    Attributes:
        width: Pixels.
        height: Pixels.
        x: The accuracies in %.
        marks: The rows.
    """

    width: int
    height: int
    x: Axis
    marks: list[Mark]


def interval_chart(rows: Sequence[tuple[str, float, float, float]]) -> IntervalChart:
    """Lay out accuracies.

    Args:
        rows: Name, and fraction, lower and upper bound; at least one.
    """
    width, row_height = 640, 34
    low = max(0.0, 100 * min(r[2] for r in rows) - 3)
    high = min(100.0, 100 * max(r[3] for r in rows) + 3)
    x = Axis(low, high, 190, width - 14)
    marks = [
        Mark(name, row_height * (i + 0.5) + 6, x(100 * v), x(100 * a), x(100 * b))
        for i, (name, v, a, b) in enumerate(rows)
    ]
    return IntervalChart(width, row_height * len(rows) + 44, x, marks)
