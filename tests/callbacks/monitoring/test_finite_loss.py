from types import SimpleNamespace

import pytest
import torch
import world
from runs import error_line, fit_student, fit_teacher

from kdpl.callbacks.finite_loss import FiniteLoss
from kdpl.errors import TrainingError
from kdpl.runtime.run_folder import CLASSIFIER_FOLDER, LAST
from kdpl.student import StudentDistillation
from kdpl.teacher import TeacherPromptTuning


def epoch_of(out):
    """The epoch of the last checkpoint, whose tensors are finite."""
    content = torch.load(out / LAST, weights_only=True)
    assert all(tensor.isfinite().all() for tensor in content["state_dict"].values())
    return content["epoch"]


def test_the_images_of_the_step_are_named_and_the_next_start_ends_as_an_uninterrupted_run(
    tmp_path, teacher_run, student_run, capsys, monkeypatch
):
    original = StudentDistillation.training_step

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        if self.trainer.global_step == 4:
            loss = loss * torch.nan
            self.loss_terms = {"kl": loss.detach()}
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(StudentDistillation, "training_step", training_step)
        assert fit_student(tmp_path, teacher_run) == 1
    line = error_line(capsys)
    assert "the loss of step 5 is not finite (kl is nan): lower model.init_args.optim.lr" in line
    assert f"{tmp_path / LAST} is kept" in line
    assert epoch_of(tmp_path) == 0
    assert not (tmp_path / CLASSIFIER_FOLDER).exists()
    assert fit_student(tmp_path, teacher_run) == 0
    weights = f"{CLASSIFIER_FOLDER}/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (student_run / weights).read_bytes()


def test_weights_that_are_not_finite_are_not_saved_though_the_loss_was(
    tmp_path, capsys, monkeypatch
):
    original = TeacherPromptTuning.on_train_batch_end

    def poison(self, outputs, batch, batch_idx):
        if self.trainer.global_step == 6:
            next(p for p in self.parameters() if p.requires_grad).data[0] = torch.inf
        original(self, outputs, batch, batch_idx)

    monkeypatch.setattr(TeacherPromptTuning, "on_train_batch_end", poison)
    assert fit_teacher(tmp_path) == 1
    assert "trained parameters are not finite after step 6: lower model." in error_line(capsys)
    assert epoch_of(tmp_path) == 0


def feed(losses, every, scaler=None):
    """Let the callback look at these losses, every few steps and before a checkpoint."""
    callback, module = FiniteLoss(every), torch.nn.Linear(2, 2)
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler),
        strategy=SimpleNamespace(reduce_boolean_decision=lambda own, **_: own),
        train_dataloader=None,
        current_epoch=0,
        global_step=0,
    )
    for trainer.global_step, loss in enumerate(losses, start=1):
        module.loss_terms = {"loss": torch.tensor(loss)}
        callback.on_train_batch_end(trainer, module, None, None, trainer.global_step - 1)
    callback.on_save_checkpoint(trainer, module, {})


@pytest.mark.parametrize("every", [1, 2, 20])
def test_the_first_step_is_named_however_rarely_the_losses_are_looked_at(every):
    with world.refused(TrainingError, r"loss of step 3 is not finite \(loss is inf\)"):
        feed([1.0, 2.0, float("inf"), float("nan"), 1.0], every)


def test_steps_that_a_gradient_scaler_skips_are_errors_only_if_all_are_skipped():
    inf = float("inf")
    feed([inf, 1.0, inf, inf, 1.0, inf], 3, scaler=object())
    with world.refused(TrainingError, "step 4"):
        feed([inf, 1.0, inf, inf, inf, inf], 3, scaler=object())
