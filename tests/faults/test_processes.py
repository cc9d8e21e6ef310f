"""Two processes of one training, of which one goes wrong or goes away."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import DATA, SHORT, TEACHER, processes_of, soon, start_process, wait_for

ALONE = (
    "error: another process of this training ended, and this one cannot go on alone: mend what that one said, if it "
)
FIT = [
    "fit",
    *DATA,
    *TEACHER,
    *SHORT,
    "--trainer.devices=2",
    "--trainer.strategy=ddp",
    "--data.init_args.num_workers=0",
]

# imported by Python itself as it starts, in both processes
POISON = """
import os
import sys

if os.environ.get("LOCAL_RANK") == "{rank}":
    import importlib.abc

    class Poison(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "kdpl.callbacks.faults":
                return None
            sys.meta_path.remove(self)
            from kdpl.teacher import TeacherPromptTuning

            original = TeacherPromptTuning.training_step

            def training_step(module, batch, number):
                loss = original(module, batch, number)
                if module.trainer.global_step == 4:
                    module.loss_terms = {{**module.loss_terms, "ce": loss.detach() * float("nan")}}
                return loss

            TeacherPromptTuning.training_step = training_step
            return None

    sys.meta_path.insert(0, Poison())
"""


@pytest.fixture
def pair():
    """Starts a training of two processes, and leaves none of them behind."""
    all_of_them = []

    def start(*more, **variables):
        process = start_process([*FIT, *more], **variables)
        all_of_them.append(process)
        return process

    yield start
    for process in all_of_them:
        if processes_of(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_loss_that_is_no_number_on_the_second_process_alone_stops_both(pair, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(POISON.format(rank=1))
    out = tmp_path / "out"
    process = pair(f"--out={out}", PYTHONPATH=str(tmp_path))
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1, err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2, err
    assert (
        sum("the loss of step 5 is no finite number (ce is nan) on the images digits" in line for line in errors) == 1
    )
    assert sum("training was stopped by another process: its message says why" in line for line in errors) == 1
    assert all(f"{out}/checkpoints/last.ckpt is kept)" in line for line in errors), err
    assert "Traceback" not in err
    assert not (out / "class_vectors.safetensors").exists()
    wait_for(lambda: not processes_of(process.pid))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_other_which_says_so(rank, pair, tmp_path):
    last = tmp_path / "checkpoints" / "last.ckpt"
    process = pair(f"--out={tmp_path}", "--trainer.max_epochs=3000")
    wait_for(lambda: last.exists() or process.poll() is not None, 90)
    assert process.poll() is None, process.stderr.read()
    other = next(pid for pid in processes_of(process.pid) if pid != process.pid)
    os.kill((process.pid, other)[rank], signal.SIGKILL)
    with soon():
        _, err = process.communicate(timeout=60)
        wait_for(lambda: not processes_of(process.pid))
    assert process.returncode == (-signal.SIGKILL if rank == 0 else 1), err
    assert ALONE in err
    assert "Traceback" not in err
    assert "Child process" not in err
    assert last.is_file()


# what Lightning calls in the place of a training waits in code that is not Python's
STUCK = """
import ctypes, subprocess, sys
from lightning.pytorch.plugins.environments import LightningEnvironment
from kdpl.runtime import peers

class Three(peers.Launcher):
    def _call_children_scripts(self):
        others = [sys.argv[1], "import time; time.sleep(600)"]
        self.procs = [subprocess.Popen([sys.executable, "-c", other]) for other in others]

def work():
    three.leaving = len(sys.argv) > 2
    ctypes.CDLL(None).sleep(4)
    print("done", flush=True)

peers._GRACE_SECONDS = 0
three = Three(LightningEnvironment(), 3, 1)
try:
    three.launch(work)
finally:
    for process in three.procs:
        process.kill()
"""


@pytest.mark.parametrize(
    ("other", "leaving", "code", "out", "err"),
    [
        ("raise SystemExit(3)", [], 1, "", ALONE),
        ("import os; os.kill(os.getpid(), 9)", [], 1, "", ALONE),
        ("raise SystemExit(3)", ["leaving"], 0, "done\n", ""),
        ("", [], 0, "done\n", ""),
    ],
    ids=["failed", "killed", "failed while this one ends by itself", "done"],
)
def test_the_first_does_not_wait_for_one_that_is_gone(other, leaving, code, out, err):
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, other, *leaving],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    said, complained = process.communicate(timeout=60)
    assert (process.returncode, said, complained[: len(err)]) == (code, out, err), complained
    assert complained.count("\n") == (1 if err else 0)
    wait_for(lambda: not processes_of(process.pid))
