"""Commands that are cut at random, and started again until they end by themselves."""

import os
import random
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from runs import start_process

_POLL = 0.2
# the exit codes of a command that a signal ended, before it could answer as well; 0 if it was at its end already
_ENDS = {signal.SIGINT: (130, -2, 0), signal.SIGTERM: (143, -15, 0), signal.SIGKILL: (-9, 0)}
_MEGABYTE = 1_000_000
# the time within which a command that was asked to stop has to have done so, in seconds
_PATIENCE = 60
# the time within which what a command started has to end after it, in seconds
_GRACE = 30


@dataclass
class Trial:
    """What came of a command.

    Attributes:
        cuts: Signal and second of each cut.
        seconds: Time of all attempts together.
        memory: Memory of all its processes together in MB at each look, of the last attempt.
        faults: What went wrong; empty if nothing did.
    """

    cuts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    memory: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def run_with_cuts(args: list[str], cuts: int, typical_seconds: float, draw: random.Random) -> Trial:
    """Run ``python -m kdpl`` with these arguments to its end, over some cuts.

    Args:
        args: The arguments.
        cuts: How often it is cut, at most.
        typical_seconds: How long it takes uncut; cuts fall within that time.
        draw: Where times and signals come from: three of four are SIGKILL, the rest SIGINT and SIGTERM.
    """
    trial = Trial()
    began = time.monotonic()
    for _ in range(cuts):
        cut_after = draw.uniform(0.5, typical_seconds)
        kind = draw.choices([signal.SIGKILL, signal.SIGINT, signal.SIGTERM], [6, 1, 1])[0]
        code, at = _attempt(args, trial, cut_after, kind)
        if code == 0:
            break
        trial.cuts.append(f"{kind.name} {at:.1f} s")
    else:
        code, _ = _attempt(args, trial, None, signal.SIGKILL)
    if code != 0:
        trial.faults.append(f"ended with {code}")
    trial.seconds = time.monotonic() - began
    return trial


def _attempt(args: list[str], trial: Trial, cut_after: float | None, kind: signal.Signals) -> tuple[int, float]:
    """Start it, and cut it after some seconds; its exit code, and how long it ran."""
    began = time.monotonic()
    trial.memory = []
    with tempfile.TemporaryFile("w+") as errors:
        process = start_process(args, stderr=errors)
        group = process.pid
        while process.poll() is None and (cut_after is None or time.monotonic() - began < cut_after):
            trial.memory.append(memory_of(group))
            time.sleep(_POLL)
        at = time.monotonic() - began
        cut = process.poll() is None
        if cut:
            _signal(group, kind)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                trial.faults.append(f"ran on for {_PATIENCE} s after {kind.name}")
        ended = time.monotonic()
        while (left := _members(group)) and time.monotonic() - ended < _GRACE:
            time.sleep(_POLL)
        if left:
            trial.faults.append(f"left {len(left)} processes behind after {kind.name if cut else 'its end'}")
        _signal(group, signal.SIGKILL)
        code = process.wait()
        if cut and code not in _ENDS[kind]:
            trial.faults.append(f"ended with {code} after {kind.name}")
        errors.seek(0)
        said = errors.read()
    if "Traceback" in said:
        trial.faults.append("a traceback: " + said[said.index("Traceback") :].strip()[-2000:])
    if not cut and code != 0:
        trial.faults.append((said.strip().splitlines() or ["no word"])[-1])
    return code, at


def memory_of(group: int) -> float:
    """Memory of all processes of a group, in MB; what they share counts once."""
    total = 0
    for pid in _members(group):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total / _MEGABYTE


def _members(group: int) -> list[int]:
    members = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # the name of the program, in parentheses, may hold anything
                state, _, its_group, *_ = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:
                continue
            if int(its_group) == group and state != "Z":
                members.append(int(folder.name))
    return members


def _signal(group: int, kind: signal.Signals) -> None:
    try:
        os.killpg(group, kind)
    except ProcessLookupError:
        return
