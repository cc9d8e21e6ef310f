import os
import signal
from contextlib import nullcontext

import pytest
import torch
from runs import DATA, SHORT, STUDENT, curves_of, fit_student, start_process, wait_for
from runs import test as run_test
from slurm_job import pretend

from kdpl.callbacks.finite_loss import FiniteLoss
from kdpl.callbacks.preemption import Preemption
from kdpl.cli.stage_cli import _require_srun
from kdpl.errors import ConfigError
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
    original, arrived = FiniteLoss.on_train_batch_start, []

    def start(self, trainer, module, images, index):
        if (trainer.current_epoch, index) == (epoch, batch):
            arrived.append(True)
        return original(self, trainer, module, images, index)

    monkeypatch.setattr(FiniteLoss, "on_train_batch_start", start)
    monkeypatch.setattr(Preemption, "_noticed", lambda _: bool(arrived))


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
        with pytest.raises(SystemExit, match="75") if saved else nullcontext():
            assert fit_student(out, teacher_run, *STEPS) == 0
    assert asked.exists() == bool(saved)
    if saved:
        assert asked.read_text() == "requeue 17\n"
        last = torch.load(out / LAST, weights_only=True)
        assert (last["epoch"], last["global_step"]) == saved
        assert f"job 17 is requeued, to resume {out}" in capsys.readouterr().out
        assert fit_student(out, teacher_run, *STEPS) == 0
        assert f"resuming from {out / LAST}" in capsys.readouterr().err
    assert (out / WEIGHTS).read_bytes() == (uninterrupted / WEIGHTS).read_bytes()
    assert curves_of(out)["val/acc"] == curves_of(uninterrupted)["val/acc"]


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_saves_and_the_same_command_ends_as_if_uninterrupted(
    tmp_path, monkeypatch, teacher_run
):
    asked = pretend(monkeypatch, tmp_path)
    steps = ["--trainer.limit_train_batches=20", f"--model.init_args.teacher={teacher_run}"]
    steps += ["--data.init_args.num_workers=0", "--trainer.limit_val_batches=1"]
    steps += ["--trainer.devices=2", "--trainer.strategy=ddp"]

    def fit(name, *more):
        options = [*SHORT, *steps, *more, f"--out={tmp_path / name}"]
        return start_process(["fit", *DATA, *STUDENT, *options])

    whole, out, often = fit("whole"), tmp_path / "out", "--checkpoint_every=1"
    _, err = whole.communicate()
    assert whole.returncode == 0, err
    process = fit("out", often)
    wait_for(lambda: (out / LAST).exists() or process.poll() is not None)
    os.kill(process.pid, signal.SIGUSR1)
    _, err = process.communicate()
    assert process.returncode == 75, err
    assert asked.exists()
    assert 0 < torch.load(out / LAST, weights_only=True)["global_step"] < 40
    process = fit("out", often)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert f"resuming from {out / LAST}" in err
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("element", [None, "3"])
def test_a_test_starts_over_when_the_job_or_the_element_is_started_again(
    element, tmp_path, monkeypatch, student_run
):
    asked = pretend(monkeypatch, tmp_path)
    if element:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", element)
    # not yet as the test begins
    monkeypatch.setattr(Preemption, "setup", lambda *_, **__: None)
    monkeypatch.setattr(Preemption, "_noticed", lambda _: True)
    with pytest.raises(SystemExit, match="75"):
        run_test(student_run, f"--out={tmp_path / 'out'}", f"--ckpt_path={student_run / LAST}")
    assert asked.read_text() == f"requeue {'12_3' if element else '17'}\n"
    assert not (tmp_path / "out" / RESULTS_FILE).exists()


def test_where_slurm_refuses_the_reason_and_the_checkpoint_are_named(
    tmp_path, monkeypatch, capsys, teacher_run
):
    pretend(monkeypatch, tmp_path, refusal="Requeue is disabled")
    notice_at(monkeypatch, 0, 2)
    assert fit_student(tmp_path / "out", teacher_run, *STEPS) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: job 17 cannot be requeued (Requeue is disabled): submit it (")
    assert f"{tmp_path / 'out' / LAST} is kept" in error


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
        _require_srun()
