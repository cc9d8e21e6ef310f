"""Coordinates of the charts that the report's templates draw as SVG."""

from collections.abc import Mapping, Sequence
from math import floor, log10
from typing import Any, NamedTuple

Point = tuple[float, float]


class Axis(NamedTuple):
    """A linear axis from the values ``low`` to ``high`` to the pixels ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Two to seven round values within the axis, as pixel and text."""
        # the smallest step of 1, 2 or 5 times a power of ten that leaves few enough ticks
        rough = (self.high - self.low) / 6
        power = 10.0 ** floor(log10(rough))
        step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
        first, last = -floor(-self.low / step + 1e-9), floor(self.high / step + 1e-9)
        digits = max(0, -floor(log10(step)))
        return [(self(i * step), f"{i * step:.{digits}f}") for i in range(first, last + 1)]


def line_chart(title: str, lines: Mapping[str, Sequence[Point]]) -> dict[str, Any] | None:
    """Lay out axes for lines of (epoch, value) by name that are not empty; None if all are."""
    drawn = {name: line for name, line in lines.items() if line}
    if not drawn:
        return None
    width, height = 400, 220
    epochs, values = zip(*(point for line in drawn.values() for point in line), strict=True)
    low, high = min(values), max(values)
    # an axis needs a length, even for a single point
    x = Axis(min(epochs), max(*epochs, min(epochs) + 1), 48, width - 10)
    y = Axis(low, high if high > low else low + 1, height - 34, 12)
    return {"title": title, "width": width, "height": height, "x": x, "y": y, "lines": drawn}
