"""How well a student follows its targets, without labels, and a search for one that does."""

from kdpl.fidelity.callback import Fidelity

__all__ = ["Fidelity"]
