import re
import signal
import threading
from contextlib import nullcontext

import pytest
from slurm_job import pretend

from kdpl.errors import ConfigError
from kdpl.runtime import slurm


def test_the_notice_interrupts_nothing_and_stays_until_it_is_asked_for(tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path)
    slurm.listen()
    assert not slurm.signalled()
    # to this thread: others that pytest started do not hold it back
    signal.pthread_kill(threading.main_thread().ident, slurm.SIGNAL)
    assert slurm.signalled()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert not slurm.signalled(), "outside of Slurm it is any program's signal"
    assert signal.sigtimedwait({slurm.SIGNAL}, 0), "none stays for other tests"
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {slurm.SIGNAL})


@pytest.mark.parametrize("array", [False, True])
def test_a_job_or_an_element_of_an_array_is_requeued_under_its_number(
    array, tmp_path, monkeypatch, capsys
):
    asked = pretend(monkeypatch, tmp_path)
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    job = "12_3" if array else "17"
    assert str(slurm.requeue("runs/a")) == f"job {job} is in the queue again"
    assert asked.read_text() == f"requeue {job}\n"
    assert f"job {job} is requeued, to resume runs/a" in capsys.readouterr().out


def test_where_slurm_refuses_the_reason_and_the_checkpoint_are_named(tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path, refusal="Requeue is disabled")
    refused = slurm.requeue("runs/a", tmp_path / "last.ckpt")
    assert isinstance(refused, slurm.RequeueError)
    assert re.search(
        r"17 .*\(Requeue is disabled\); .*last.ckpt is kept: submit it again", str(refused)
    )
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert re.search(
        r"could not be requeued \(.*scontrol.*: submit it again", str(slurm.requeue("runs/a"))
    )


@pytest.mark.parametrize(
    ("variables", "refusal"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_ID": "0"}, None),
        ({"SLURM_NTASKS": "2", "TORCHELASTIC_RUN_ID": "x"}, None),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}, "put srun before the command"),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, "give --ntasks-per-node instead of --ntasks"),
    ],
)
def test_a_job_that_would_hang_is_refused(variables, refusal, tmp_path, monkeypatch):
    pretend(monkeypatch, tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with nullcontext() if refusal is None else pytest.raises(ConfigError, match=refusal):
        slurm.require_srun()
