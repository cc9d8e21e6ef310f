"""JSON of an artifact, which anybody may have written: each value is asked for by name and kind, and else refused."""

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from kdpl.errors import ArtifactError, KdplError, visible
from kdpl.runtime.class_names import fault_of_name

_MOST = 2**31 - 1  # of a size or a count; torch takes no larger one everywhere
_LONGEST = 10_000  # characters of a text

_LAYOUT = dict.fromkeys(map(ord, "\n\r\t"), " ")

T = TypeVar("T")


def describe(value: object) -> str:
    """Give a value from an artifact for a message: whole where it is short, by its kind otherwise."""
    if value is None or isinstance(value, bool | float):
        return str(value)
    if isinstance(value, int) and abs(value) < 10**18:
        return str(value)
    if isinstance(value, str) and len(value) <= 40:
        return visible(value)
    return f"of type {type(value).__name__}"


class Fields:
    """A JSON object as it was read.

    Args:
        values: The object.
        source: Where it comes from, for messages.
        remedy: What a person is to do when it is damaged.
        error: What is raised.
        prefix: Where the object stands within a larger one, for messages.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        source: str,
        remedy: str,
        error: type[KdplError] = ArtifactError,
        prefix: str = "",
    ) -> None:
        self._values = values
        self._source = source
        self._remedy = remedy
        self._error = error
        self._prefix = prefix

    @classmethod
    def parse(cls, text: str, source: str, remedy: str, error: type[KdplError] = ArtifactError) -> "Fields":
        """Read JSON that must be an object.

        Raises:
            KdplError: It is something else.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as wrong:
            raise error(f"{source} is damaged (it is not JSON): {remedy}") from wrong
        if not isinstance(values, dict):
            raise error(f"{source} is damaged (it is no JSON object): {remedy}")
        return cls(values, source, remedy, error)

    def refuse(self, name: str) -> KdplError:
        """Give the error that names a field as missing or garbled."""
        return self._error(f"{self._source} lacks or garbles the field '{self._prefix}{name}': {self._remedy}")

    def _of(self, name: str, kind: type[T]) -> T:
        value = self._values.get(name)
        # a checkpoint keeps what JSON makes a list
        value = list(value) if isinstance(value, tuple) else value
        # true is a whole number to Python
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refuse(name)
        return value

    def any(self, name: str) -> Any:  # noqa: ANN401
        """A value of any kind, for messages and comparisons alone; None where it is missing."""
        return self._values.get(name)

    def section(self, name: str) -> "Fields":
        """An object within."""
        values = self._of(name, dict)
        return Fields(values, self._source, self._remedy, self._error, f"{self._prefix}{name}.")

    def mapping(self, name: str) -> dict[str, Any]:
        """An object within, as it is."""
        return self._of(name, dict)

    def text(self, name: str) -> str:
        """A text that can be shown and encoded, of several lines too."""
        value = self._of(name, str)
        if len(value) > _LONGEST or visible(value.translate(_LAYOUT)) != value.translate(_LAYOUT):
            raise self.refuse(name)
        return value

    def text_or_none(self, name: str) -> str | None:
        """A text, or null; the field must be there."""
        if name in self._values and self._values[name] is None:
            return None
        return self.text(name)

    def texts(self, name: str) -> list[str]:
        """A list of texts."""
        values = self._of(name, list)
        return [
            Fields({name: value}, self._source, self._remedy, self._error, self._prefix).text(name) for value in values
        ]

    def flag(self, name: str) -> bool:
        """True or false."""
        return self._of(name, bool)

    def whole(self, name: str, least: int = 0, most: int = _MOST) -> int:
        """A whole number from ``least`` to ``most``."""
        value = self._of(name, int)
        if not least <= value <= most:
            raise self.refuse(name)
        return value

    def whole_or_none(self, name: str, least: int = 0, most: int = _MOST) -> int | None:
        """A whole number, or null; the field must be there."""
        if name in self._values and self._values[name] is None:
            return None
        return self.whole(name, least, most)

    def positive(self, name: str, most: float) -> float:
        """A number above 0 and up to ``most``."""
        value = self._values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise self.refuse(name)
        return float(value)

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A list of so many finite numbers."""
        values = self._of(name, list)
        kinds = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if len(values) != length or not kinds or not all(abs(value) < 1e9 and math.isfinite(value) for value in values):
            raise self.refuse(name)
        return tuple(float(value) for value in values)

    def class_names(self, name: str) -> tuple[str, ...]:
        """A list of class names, of which there is at least one."""
        values = self._of(name, list)
        for value in values:
            fault = fault_of_name(value)
            if fault:
                raise self._error(f"{self._source} has a class name that {fault}: {self._remedy}")
        if not values:
            raise self.refuse(name)
        return tuple(values)
