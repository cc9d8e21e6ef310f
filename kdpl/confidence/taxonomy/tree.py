"""Tree over the classes: its table, and the probabilities of its nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from kdpl.errors import DataError
from kdpl.runtime.class_names import composed, fault_of_name
from kdpl.runtime.files import read_columns


@dataclass(frozen=True)
class Taxonomy:
    """Tree with the C classes as leaves, as its L levels from 1 on.

    The level of a node is its distance from the root. A leaf above the last level is repeated at
    the deeper levels, so that each level divides all classes.

    Attributes:
        nodes: Names of the nodes of each level.
        of_class: Number of each class's node at each level, int64 [L, C].
    """

    root: str
    nodes: tuple[tuple[str, ...], ...]
    of_class: Tensor

    @classmethod
    def read(cls, file: Path, class_names: Sequence[str]) -> Self:
        """Read a CSV table with the columns ``child`` and ``parent``."""
        parents = dict[str, str]()
        for child, parent in _rows(file):
            if (first := parents.setdefault(child, parent)) != parent:
                raise DataError(
                    f"taxonomy {file} has {child!r} with two parents, {first!r} and {parent!r}: "
                    "keep one of them"
                )
        if problem := _problem(parents, {*class_names}):
            raise DataError(f"taxonomy {file} {problem}")

        paths = []
        for name in class_names:
            path = [name]
            while path[0] in parents:
                path.insert(0, parents[path[0]])
            paths.append(path)

        levels = [
            [path[min(level, len(path) - 1)] for path in paths]
            for level in range(1, max(map(len, paths)))
        ]
        numbers = [{name: i for i, name in enumerate(dict.fromkeys(level))} for level in levels]
        of_class = [
            [number_of[name] for name in level]
            for number_of, level in zip(numbers, levels, strict=True)
        ]
        return cls(paths[0][0], tuple(map(tuple, numbers)), torch.tensor(of_class))

    def best(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probability and the number of the most probable node at each level.

        The probability of a node is the sum over its classes. ``probabilities`` are [B, C]; both
        results are [B, L], float32 and int64.
        """
        exact, best = probabilities.double().cpu(), []
        for nodes, of_class in zip(self.nodes, self.of_class, strict=True):
            sums = exact.new_zeros(len(exact), len(nodes)).index_add(1, of_class, exact)
            best.append(sums.max(dim=1))
        scores, numbers = (torch.stack(column, dim=1) for column in zip(*best, strict=True))
        return scores.clamp(max=1).float(), numbers


def _rows(file: Path) -> list[tuple[str, str]]:
    columns = read_columns(file, "taxonomy")
    if not {"child", "parent"} <= columns.keys():
        raise DataError(
            f"taxonomy {file} has the columns {', '.join(columns) or 'nothing'}, expected child "
            "and parent: name them in its first line"
        )
    children, parents = (map(composed, columns[name]) for name in ("child", "parent"))
    named = list(zip(children, parents, strict=True))
    for number, (child, parent) in enumerate(named, start=1):
        if problem := fault_of_name(child) or fault_of_name(parent):
            raise DataError(
                f"row {number} of taxonomy {file} has a name that {problem}: correct it"
            )
    return named


def _problem(parents: Mapping[str, str], classes: set[str]) -> str | None:
    inner = {*parents.values()}
    try:
        TopologicalSorter({child: [parent] for child, parent in parents.items()}).prepare()
    except CycleError as error:
        return f"has the circle {' → '.join(error.args[1])}: give one of them another parent"
    if len(roots := sorted(inner - parents.keys())) > 1:
        return f"has the roots {roots[0]!r} and {roots[1]!r}, expected one: give one a parent"
    if above := sorted(classes & inner):
        return f"has the class {above[0]!r} as a parent, expected a leaf: rename that node"
    if missing := sorted(classes - parents.keys()):
        return f"lacks the class {missing[0]!r}: add a row with it as the child"
    if extra := sorted(parents.keys() - inner - classes):
        return f"has the leaf {extra[0]!r}, which is not a class: remove its row, or rename it"
    return None
