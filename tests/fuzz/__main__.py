"""``make fuzz``: garbled files of every kind, each of which must be read, or refused in a sentence, and no more."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from fuzz.fuzzing import Outcome, fuzz
from fuzz.targets import build
from fuzz.worker import Limits, Worker
from rich.console import Console
from rich.table import Table


def main() -> int:
    """Garble files and print a report; 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--seed", type=int, help="of what is garbled; default: another each time")
    parser.add_argument("--only", help="only targets whose names contain this")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="for files that were found to be trouble")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    console = Console()
    console.print(f"seed: {seed}")
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(build, Path(folder), Limits())
        names = [name for name in worker.whole if (options.only or "") in name]
        if not names:
            parser.error(f"--only {options.only}: give a part of one of {', '.join(worker.whole)}")
        try:
            outcome = fuzz(worker, names, seed, options.seconds, options.out)
        finally:
            worker.close()
    console.print(_table(outcome))
    for (name, what), count in outcome.findings.items():
        console.print(f"{name} {what}, {count} times: {outcome.saved[name, what]}", soft_wrap=True, markup=False)
    total = sum(outcome.inputs.values())
    console.print(f"{len(outcome.findings)} findings in {total} files, seed {seed}")
    return 1 if outcome.findings else 0


def _table(outcome: Outcome) -> Table:
    table = Table("reader of", "files", "findings")
    for name, count in outcome.inputs.items():
        found = sum(times for (target, _), times in outcome.findings.items() if target == name)
        table.add_row(name, str(count), str(found or "-"))
    return table


if __name__ == "__main__":
    sys.exit(main())
