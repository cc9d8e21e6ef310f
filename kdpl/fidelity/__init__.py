"""How well a student follows its targets, without labels, and a search for one that does."""

from typing import TYPE_CHECKING

from kdpl.runtime.lazy import lazily

if TYPE_CHECKING:
    from kdpl.fidelity.callback import Fidelity

__all__ = ["Fidelity"]

__getattr__ = lazily(__name__, {"Fidelity": "callback"})
