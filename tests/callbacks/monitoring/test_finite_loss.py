from types import SimpleNamespace

import pytest
import torch
import world
from runs import error_line, fit_student

from kdpl.callbacks.finite_loss import FiniteLoss
from kdpl.errors import TrainingError
from kdpl.runtime.run_folder import CLASSIFIER_FOLDER, LAST
from kdpl.student import StudentDistillation


@pytest.mark.usefixtures("without_companions")
def test_a_loss_that_is_not_finite_ends_a_fit_and_the_next_start_ends_as_an_uninterrupted_run(
    tmp_path, teacher_run, student_run, capsys, monkeypatch
):
    original = StudentDistillation.training_step

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        return loss * torch.nan if self.trainer.global_step == 4 else loss

    with monkeypatch.context() as patch:
        patch.setattr(StudentDistillation, "training_step", training_step)
        assert fit_student(tmp_path, teacher_run) == 1
    line = error_line(capsys)
    assert "not finite after step 6: lower model.init_args.optim.lr" in line
    assert f"{tmp_path / LAST} is kept" in line
    # the last checkpoint is finite
    content = torch.load(tmp_path / LAST, weights_only=True)
    assert all(tensor.isfinite().all() for tensor in content["state_dict"].values())
    assert content["epoch"] == 0
    assert not (tmp_path / CLASSIFIER_FOLDER).exists()
    assert fit_student(tmp_path, teacher_run) == 0
    weights = f"{CLASSIFIER_FOLDER}/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (student_run / weights).read_bytes()


def test_steps_that_a_gradient_scaler_skips_are_errors_only_if_nearly_all_are_skipped():
    scaler = SimpleNamespace(get_scale=lambda: scale)
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler),
        strategy=SimpleNamespace(reduce_boolean_decision=lambda own, **_: own),
        global_step=4,
    )
    scale = 2.0**-8
    FiniteLoss().on_save_checkpoint(trainer, torch.nn.Linear(2, 2), {})
    scale = 2.0**-24
    with world.refused(TrainingError, "after step 4"):
        FiniteLoss().on_save_checkpoint(trainer, torch.nn.Linear(2, 2), {})
