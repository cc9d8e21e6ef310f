"""Comparison of a run that was interrupted with one that was not."""

import torch
from runs import files_of

from kdpl.runtime.loggers import read_metrics
from kdpl.runtime.run_folder import LAST, METRICS_FILE

# pages and pictures show measured times
SHOWN = (".html", ".png")


def differences(reference, folder):
    """The differences of a run's folder from that of a run that was never interrupted, a sentence each."""
    expected, found = set(files_of(reference)), set(files_of(folder))
    said = [f"{name} is missing" for name in sorted(expected - found)]
    said += [f"{name} was left behind" for name in sorted(found - expected)]
    for name in sorted(expected & found):
        a, b = reference / name, folder / name
        if name.endswith(LAST):
            said += [f"{name}: {part} differs" for part in different_parts(a, b)]
        elif a.name == METRICS_FILE:
            said += [f"{name}: {key} differs" for key in different_metrics(a, b)]
        elif a.suffix not in SHOWN and a.read_bytes() != b.read_bytes():
            said.append(f"{name} differs")
    return said


def different_metrics(reference, other):
    """Return the metrics with another value at a step; those of an epoch that was cut off may be missing."""
    a, b = ({k: dict(v) for k, v in read_metrics(file).items()} for file in (reference, other))
    return [key for key in b if not b[key].items() <= a.get(key, {}).items()]


def different_parts(reference, other):
    """Return the parts of a checkpoint that differ."""
    a, b = (torch.load(file, weights_only=True) for file in (reference, other))
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
    return [part for part in parts if not equal(a[part], b[part])]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.equal(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
