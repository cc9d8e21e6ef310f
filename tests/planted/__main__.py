"""``make planted``: do the tests notice faults that are planted into kdpl/, one at a time?"""

import argparse
import multiprocessing
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from planted.faults import read_faults
from planted.runner import Copy


def _work(results, folder, function, items):
    try:
        copy = Copy(Path(tempfile.mkdtemp(dir=folder)))
        for item in items:
            results.put(function(copy, item))
    except BaseException:
        results.put(None)
        raise


def shared_out(workers, function, items):
    """Yield the results of a function of a copy and an item, from processes with a copy each."""
    # not a pool: its processes have no children, or take up the next item when they are ended
    fork, folder = multiprocessing.get_context("fork"), tempfile.mkdtemp(prefix="planted-")
    results, processes = fork.SimpleQueue(), []
    try:
        for worker in range(workers):
            work = (results, folder, function, items[worker::workers])
            processes.append(fork.Process(target=_work, args=work))
            processes[-1].start()
        for _ in items:
            if (result := results.get()) is None:
                raise SystemExit("a worker failed, as its error says")
            yield result
    finally:
        for process in processes:
            process.terminate()
            process.join()
        shutil.rmtree(folder, ignore_errors=True)


def plant_all(workers, faults, whole_suite):
    """Plant the faults; 0 if each is caught."""
    verdicts = []
    for verdict in shared_out(workers, partial(Copy.verdict_of, whole_suite=whole_suite), faults):
        fault, suite, outcome = verdict
        words = f"caught by the {suite} suite: {outcome.test}" if suite else "caught by none"
        print(f"{fault.name}: {words} ({outcome.seconds:.0f} s) {outcome.words}", flush=True)
        verdicts.append(verdict)
    suites = [verdict.suite for verdict in verdicts]
    counts = [f"{suites.count(suite)} by the {suite} suite" for suite in ("fast", "slow")]
    missed = ", ".join(fault.name for fault, suite, _ in verdicts if not suite)
    print(f"{len(verdicts)} faults: {', '.join(counts)}, by none: {missed or 'no fault'}")
    return int("" in suites)


def main():
    """Parse the options, and plant faults in copies of the project."""
    parser = argparse.ArgumentParser(prog="make planted", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="FAULT", help="names of faults")
    parser.add_argument("--part", default="1/1", help="a part of the faults, such as 1/4")
    parser.add_argument("--all", action="store_true", help="try the whole fast suite at the end")
    parser.add_argument("--workers", type=int, default=2, help="faults at a time (default: 2)")
    options = parser.parse_args()
    faults = read_faults()
    if unknown := {*(options.only or ())} - {fault.name for fault in faults}:
        parser.error(f"there is no fault {min(unknown)}")
    part, parts = map(int, options.part.split("/"))
    faults = [fault for fault in faults if not options.only or fault.name in options.only]
    faults = faults[part - 1 :: parts]
    # as Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return plant_all(options.workers, faults, options.all)


if __name__ == "__main__":
    sys.exit(main())
