"""Garbling and reading over and over, and what came of it."""

import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.mutation import mutated
from fuzz.worker import Worker


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        inputs: How many files each target was given.
        findings: How often each target had each fault.
        saved: The first file of each of them.
    """

    inputs: Counter[str] = field(default_factory=Counter)
    findings: Counter[tuple[str, str]] = field(default_factory=Counter)
    saved: dict[tuple[str, str], Path] = field(default_factory=dict)


def fuzz(worker: Worker, names: list[str], seed: int, seconds: float, out: Path) -> Outcome:
    """Give garbled files to readers until the time is over, to each as many.

    Args:
        worker: Reads them.
        names: The targets.
        seed: Of what is garbled, and how.
        seconds: How long.
        out: Folder for the first file with each fault, and beside it what is known of the fault.
    """
    outcome = Outcome()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name in names:
            file, whole = worker.whole[name]
            number = outcome.inputs[name]
            # of its own, so that a file can be made again for one target alone
            content = mutated(whole, file, random.Random(f"{seed} {name} {number}"))  # noqa: S311
            fault = worker.read(name, content)
            outcome.inputs[name] += 1
            if fault is None:
                continue
            key = (name, fault.what)
            outcome.findings[key] += 1
            if key not in outcome.saved:
                label = re.sub(r"\W+", "-", f"{name} {fault.what}").strip("-")
                path = out / f"{label}{Path(file).suffix}"
                out.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                path.with_name(f"{path.name}.txt").write_text(
                    f"{name} {fault.what}\nseed {seed}, input {number}\n{fault.details}", encoding="utf-8"
                )
                outcome.saved[key] = path
    return outcome
