"""``make soak``: the quickstart, killed at random on one and on two processes, ends as one that was not interrupted."""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from runs import DATA, STAGES, processes_of, wait_for
from soak.comparison import differences

RUN = ["run", *DATA, *STAGES, "--trainer.enable_progress_bar=false"]
ON = {1: [], 2: ["--trainer.devices=2", "--trainer.strategy=ddp"]}
MOST_KILLS = 4  # of one run


def attempt(args, log, kill_after=None, alone=False):
    """Start a command, and kill it after some seconds or let it end; returns its exit code once no process is left.

    ``alone`` kills only the process that was started, and not those that it started.
    """
    with log.open("a") as errors:
        # not forked: kills also meet the imports
        command = [sys.executable, "-m", "kdpl", *args]
        output = {"stdout": subprocess.DEVNULL, "stderr": errors}
        process = subprocess.Popen(
            command, **output, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        begin = time.monotonic()
        try:
            while process.poll() is None:
                if kill_after is not None and time.monotonic() - begin > kill_after:
                    (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
                    break
                time.sleep(0.05)
            wait_for(lambda: process.poll() is not None and not processes_of(process.pid))
        finally:  # Ctrl-C does not reach its group
            if processes_of(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


class Soak:
    """Runs into one folder, so that paths in configs and checkpoints are the same; what is in it is removed."""

    def __init__(self, out, draw, options):
        self.out, self.draw, self.options = out, draw, options
        self.run, self.log, self.seconds = out / "run", out / "log.txt", {}
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)

    def command(self, processes):
        return [*RUN, *ON[processes], *self.options, f"--out={self.run}"]

    def reference(self, processes):
        """Run without interruption."""
        begin = time.monotonic()
        code = attempt(self.command(processes), self.log)
        if code != 0:
            raise SystemExit(
                f"the run fails without a kill, on {processes}: {self.log.read_text()[-2000:]}"
            )
        self.seconds[processes] = time.monotonic() - begin
        self.run.rename(self.out / f"reference-{processes}")

    def killed(self, processes, kills):
        """Kill a run so often, and let it end; returns the moments of the kills, and what is wrong."""
        moments, problems = [], []
        while len(moments) < kills:
            moment = self.draw.uniform(1, 0.9 * self.seconds[processes])
            alone = self.draw.random() < 0.3
            code = attempt(self.command(processes), self.log, moment, alone)
            if code == 0:
                break
            moments.append(f"{moment:.1f} s{' (first process alone)' if alone else ''}")
            if code != -signal.SIGKILL:
                problems.append(f"ended with {code} before it was killed")
                break
        code = attempt(self.command(processes), self.log)
        if code:
            problems.append(f"ended with {code}")
        else:
            problems += differences(self.out / f"reference-{processes}", self.run)
        if not problems:
            shutil.rmtree(self.run)
        return moments, problems


def main():
    """Kill runs until there were enough kills; 0 if all of them ended as those that were not interrupted."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills in total (default: 20)")
    parser.add_argument("--epochs", type=int, help="epochs of either stage")
    parser.add_argument("--seed", type=int, help="seed of the kills (default: another each time)")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    epochs = [] if options.epochs is None else [f"--trainer.max_epochs={options.epochs}"]
    soak = Soak(options.out.absolute(), random.Random(seed), epochs)  # noqa: S311
    print(f"seed {seed}", flush=True)
    for processes in ON:
        soak.reference(processes)
        print(f"reference on {processes}: {soak.seconds[processes]:.0f} s", flush=True)
    kills = runs = 0
    while kills < options.kills:
        processes = 1 + runs % len(ON)
        most = min(soak.draw.randint(1, MOST_KILLS), options.kills - kills)
        moments, problems = soak.killed(processes, most)
        runs, kills = runs + 1, kills + len(moments)
        said = "; ".join(problems) or "same as without"
        killed = ", ".join(moments) or "-"
        print(f"run {runs}, processes {processes}, killed after {killed}: {said}", flush=True)
        if problems:
            print(f"its folder is {soak.run}, its messages are in {soak.log}")
            return 1
    print(f"{runs} runs with {kills} kills ended as those without, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
