import signal

import pytest
import torch
from runs import curves_of, fit_student
from runs import test as run_test
from slurm_job import pretend

from kdpl.callbacks.preemption import InterruptionHandler
from kdpl.runtime import faults, slurm
from kdpl.runtime.run_folder import LAST, RESULTS_FILE

pytestmark = pytest.mark.usefixtures("without_companions")

# three steps an epoch, each of two batches
STEPS = [
    "--trainer.limit_train_batches=6",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.limit_val_batches=1",
]
WEIGHTS = "classifier/model.safetensors"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, teacher_run):
    out = tmp_path_factory.mktemp("uninterrupted") / "student"
    assert fit_student(out, teacher_run, *STEPS) == 0
    return out


def notice_at(monkeypatch, epoch, batch):
    """Let the notice arrive while a batch is processed."""
    original, arrived = InterruptionHandler.on_train_batch_start, []

    def start(self, trainer, module, images, index):
        if (trainer.current_epoch, index) == (epoch, batch):
            arrived.append(True)
        return original(self, trainer, module, images, index)

    monkeypatch.setattr(InterruptionHandler, "on_train_batch_start", start)
    monkeypatch.setattr(slurm, "signalled", lambda: bool(arrived))


@pytest.mark.parametrize(
    ("epoch", "batch", "saved"),
    # in the first half of a step, in the last step of an epoch, and in the last of all, after which the fit finishes
    [(0, 2, (0, 2)), (0, 5, (0, 3)), (1, 5, None)],
)
def test_after_the_notice_a_job_ends_the_step_saves_and_resumes_as_if_uninterrupted(
    epoch, batch, saved, tmp_path, monkeypatch, capsys, teacher_run, uninterrupted
):
    out = tmp_path / "out"
    asked = pretend(monkeypatch, tmp_path)
    with monkeypatch.context() as patch:
        notice_at(patch, epoch, batch)
        code = fit_student(out, teacher_run, *STEPS)
    assert asked.exists() == bool(saved)
    if saved:
        assert code == slurm.REQUEUED
        assert asked.read_text() == "requeue 17\n"
        last = torch.load(out / LAST, weights_only=True)
        assert (last["epoch"], last["global_step"]) == saved
        assert f"job 17 is requeued, to resume {out}" in capsys.readouterr().out
        assert fit_student(out, teacher_run, *STEPS) == 0
        assert f"resuming from {out / LAST}" in capsys.readouterr().err
    assert (out / WEIGHTS).read_bytes() == (uninterrupted / WEIGHTS).read_bytes()
    assert curves_of(out)["val/acc"] == curves_of(uninterrupted)["val/acc"]


def test_a_test_starts_over_when_the_job_is_started_again(tmp_path, monkeypatch, student_run):
    asked = pretend(monkeypatch, tmp_path)
    monkeypatch.setattr(slurm, "signalled", lambda: True)
    options = [f"--out={tmp_path / 'out'}", f"--ckpt_path={student_run / LAST}"]
    assert run_test(student_run, *options) == slurm.REQUEUED
    assert asked.read_text() == "requeue 17\n"
    assert not (tmp_path / "out" / RESULTS_FILE).exists()


def test_sigterm_interrupts_a_training(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    try:
        InterruptionHandler().on_train_start(None, None)
        with pytest.raises(faults.Terminated):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
