"""Explanations of predictions: heat maps, and the nearest labelled images."""

from typing import TYPE_CHECKING

from kdpl.runtime.lazy import lazily

if TYPE_CHECKING:
    from kdpl.report.reasons.heat import heat_map

__all__ = ["heat_map"]

__getattr__ = lazily(__name__, {"heat_map": "heat"})
