import re

import pytest
import torch
from kdpl.callbacks.requeue import may_requeue
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from runs import curves_of, fit_student, fit_teacher
from runs import test as run_test
from slurm_job import forget, pretend, send

from kdpl.callbacks.throughput import Throughput
from kdpl.runtime.slurm import REQUEUED

# three steps an epoch, each of two batches
STEPS = ["--trainer.limit_train_batches=6", "--trainer.accumulate_grad_batches=2"]
WEIGHTS = "classifier/model.safetensors"


@pytest.fixture(autouse=True)
def _no_notice_stays():
    yield
    forget()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, teacher_run):
    out = tmp_path_factory.mktemp("whole") / "student"
    assert fit_student(out, teacher_run, *STEPS) == 0
    return out


def send_at(monkeypatch, epoch, batch):
    """Have the notice come while a batch is under way."""
    original = Throughput.on_train_batch_start

    def start(self, trainer, module, images, index):
        if (trainer.current_epoch, index) == (epoch, batch):
            send()
        return original(self, trainer, module, images, index)

    monkeypatch.setattr(Throughput, "on_train_batch_start", start)


@pytest.mark.parametrize(
    ("epoch", "batch", "saved"),
    # a notice in the first half of a step, in an epoch's last step, and in the last epoch
    [(0, 2, (0, 2)), (0, 5, (0, 3)), (1, 1, (1, 4))],
)
def test_a_job_that_is_told_ends_the_step_saves_and_goes_on_as_if_uncut(
    epoch, batch, saved, tmp_path, monkeypatch, capsys, teacher_run, whole
):
    out = tmp_path / "out"
    asked = pretend(monkeypatch, tmp_path)
    with monkeypatch.context() as patch:
        send_at(patch, epoch, batch)
        assert fit_student(out, teacher_run, *STEPS) == REQUEUED
    assert asked.read_text() == "requeue 17\n"
    last = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == saved
    assert not list(out.rglob("hpc_ckpt*"))
    assert not (out / ".lock").exists()
    assert f"job 17 goes back into the queue, to go on with {out}" in capsys.readouterr().err
    forget()
    assert fit_student(out, teacher_run, *STEPS) == 0
    assert "going on from" in capsys.readouterr().err
    assert (out / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert curves_of(out) == curves_of(whole)


def test_a_notice_in_the_last_step_ends_the_fit_and_not_the_job(tmp_path, monkeypatch, teacher_run):
    asked = pretend(monkeypatch, tmp_path)
    send_at(monkeypatch, 1, 5)
    assert fit_student(tmp_path / "out", teacher_run, *STEPS) == 0
    assert not asked.exists()
    assert (tmp_path / "out" / WEIGHTS).exists()


def test_an_element_of_an_array_is_requeued_by_its_own_name(tmp_path, monkeypatch, teacher_run):
    asked = pretend(monkeypatch, tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    send_at(monkeypatch, 0, 0)
    assert fit_teacher(tmp_path / "out") == REQUEUED
    assert asked.read_text() == "requeue 12_3\n"


def test_where_slurm_refuses_one_line_says_so_and_the_checkpoint_stays(tmp_path, monkeypatch, capsys, teacher_run):
    out = tmp_path / "out"
    pretend(monkeypatch, tmp_path, refusal="Requested operation is presently disabled for job 17")
    send_at(monkeypatch, 0, 1)
    assert fit_student(out, teacher_run, *STEPS) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line == (
        "error: job 17 could not be put back into the queue (Requested operation is presently disabled for job 17); "
        f"{out}/checkpoints/last.ckpt is kept: submit it again to go on with {out}"
    )
    assert torch.load(out / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 1


def test_without_scontrol_one_line_says_so(tmp_path, monkeypatch, capsys, teacher_run):
    pretend(monkeypatch, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    send_at(monkeypatch, 0, 1)
    assert fit_student(tmp_path / "out", teacher_run, *STEPS) == 1
    assert re.search(r"^error: job 17 could not be put back .*scontrol.*submit it again", capsys.readouterr().err, re.M)


def test_a_test_begins_anew_in_the_next_life_of_the_job(tmp_path, monkeypatch, capsys, student_run):
    asked = pretend(monkeypatch, tmp_path)
    out = tmp_path / "out"
    original = Throughput.on_test_start
    monkeypatch.setattr(Throughput, "on_test_start", lambda *args: (send(), original(*args)))
    checkpoint = f"--ckpt_path={student_run / 'checkpoints/last.ckpt'}"
    assert run_test(student_run, f"--out={out}", checkpoint) == REQUEUED
    assert asked.read_text() == "requeue 17\n"
    assert not (out / "test.json").exists()


def test_outside_of_slurm_the_notice_is_any_programs_signal(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    seen = []
    original = Throughput.on_fit_start
    monkeypatch.setattr(
        Throughput,
        "on_fit_start",
        lambda self, trainer, module: (
            seen.append([type(each).__name__ for each in trainer.callbacks]),
            original(self, trainer, module),
        ),
    )
    assert fit_teacher(tmp_path / "out", "--trainer.max_epochs=1") == 0
    assert "RunCheckpoint" in seen[0]
    assert "Requeue" not in seen[0]


def test_lightnings_own_switch_counts(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert may_requeue(SLURMEnvironment())
    assert not may_requeue(SLURMEnvironment(auto_requeue=False))
    assert may_requeue(LightningEnvironment())
