"""What must be the same of a run that was cut and of one that was not."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from runs import SPEED

from kdpl.runtime.loggers import read_metrics
from kdpl.runtime.predictions import PREDICTIONS_FILE
from kdpl.runtime.run_folder import LAST

# pages and pictures of measured times; that they are there is looked at
_SHOWN = (".html", ".png")
_METRICS = "metrics.csv"
# what a process may grow by while it does the same thing over and over
_GROWTH, _GROWTH_MB = 1.1, 30


def differences(reference: Path, folder: Path, images: int) -> list[str]:
    """Compare a run's folder with that of a run that was never cut.

    Args:
        reference: Folder of the run that was never cut, which was written under the same name as the other.
        folder: The other.
        images: Number of test images.

    Returns:
        A sentence for each thing that differs.
    """
    expected, found = _files(reference), _files(folder)
    said = [f"{name} is missing" for name in sorted(expected - found)]
    said += [f"{name} was left behind" for name in sorted(found - expected)]
    for name in sorted(expected & found):
        a, b = reference / name, folder / name
        if name.endswith(LAST):
            said += [f"{name}: {key} differs" for key in _checkpoint_differences(a, b)]
        elif a.name == _METRICS:
            said += [f"{name}: {key} differs" for key in _curve_differences(a, b)]
        elif a.suffix not in _SHOWN and a.read_bytes() != b.read_bytes():
            said.append(f"{name} differs")
        if a.name == PREDICTIONS_FILE:
            said += [f"{name}: {fault}" for fault in miscounted(b, "index", [str(i) for i in range(images)])]
    return said


def miscounted(table: Path, column: str, expected: list[str]) -> list[str]:
    """Say which rows of a CSV file are not once there, in order."""
    with table.open(newline="", encoding="utf-8") as lines:
        found = [row[column] for row in csv.DictReader(lines)]
    if found == expected:
        return []
    lost, doubled = set(expected) - set(found), len(found) - len(set(found))
    return [f"{len(lost)} images lost, {doubled} doubled" if lost or doubled else "rows in another order"]


def grown(memory: list[float]) -> list[str]:
    """Say if memory in MB, looked at again and again, grew over the second half of the looks."""
    if len(memory) < 8:
        return []
    quarter = len(memory) // 4
    middle, last = sorted(memory[2 * quarter : 3 * quarter]), sorted(memory[3 * quarter :])
    before, after = middle[len(middle) // 2], last[len(last) // 2]
    return [f"memory grew from {before:.0f} to {after:.0f} MB"] if after > _GROWTH * before + _GROWTH_MB else []


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _curve_differences(reference: Path, other: Path) -> list[str]:
    a, b = read_metrics(reference), read_metrics(other)
    different = [key for key in sorted(a.keys() | b.keys()) if key not in SPEED and a.get(key) != b.get(key)]
    for key in SPEED:  # each step once all the same
        if [step for step, _ in a.get(key, [])] != [step for step, _ in b.get(key, [])]:
            different.append(f"{key} (its steps)")
        if not all(math.isfinite(value) for _, value in b.get(key, [])):
            different.append(f"{key} (not finite)")
    return different


def _checkpoint_differences(reference: Path, other: Path) -> list[str]:
    a, b = (torch.load(path, weights_only=True, map_location="cpu") for path in (reference, other))
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return [part for part in parts if not _equal(a.get(part), b.get(part))]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.equal(b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)
