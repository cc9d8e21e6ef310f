"""Two processes of one training, of which one goes wrong or goes away."""

import os
import signal
import time

import pytest
from runs import DATA, SHORT, TEACHER, processes_of, start_process, wait_for

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
    wait_for(lambda: not processes_of(process.pid), 20)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_other_which_says_so(rank, pair, tmp_path):
    last = tmp_path / "checkpoints" / "last.ckpt"
    process = pair(f"--out={tmp_path}", "--trainer.max_epochs=3000")
    wait_for(lambda: last.exists() or process.poll() is not None, 90)
    assert process.poll() is None, process.stderr.read()
    other = next(pid for pid in processes_of(process.pid) if pid != process.pid)
    os.kill((process.pid, other)[rank], signal.SIGKILL)
    begin = time.monotonic()
    _, err = process.communicate(timeout=60)
    wait_for(lambda: not processes_of(process.pid), 40)
    assert time.monotonic() - begin < 40
    assert process.returncode == (-signal.SIGKILL if rank == 0 else 1), err
    assert "error: another process of this training ended, and this one cannot go on alone: mend what" in err
    assert "Traceback" not in err
    assert last.is_file()
