import pytest
import torch
import world
from kdpl.callbacks.faults import FiniteLoss
from runs import DATA, SHORT, STUDENT, fit_student, fit_teacher

from kdpl.__main__ import main
from kdpl.data.teacher_cache import TeacherCache
from kdpl.errors import TrainingError
from kdpl.student import StudentDistillation
from kdpl.teacher import TeacherPromptTuning

TWO_MORE = ["--trainer.max_epochs=4"]


def last_line(capsys):
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: "), line
    return line


def epoch_of(out):
    content = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in content["state_dict"].values())
    return content["epoch"]


def test_a_learning_rate_that_explodes_ends_training_at_its_step_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    # epoch 0 warms up with a rate of its own
    assert fit_teacher(tmp_path, *TWO_MORE, "--model.init_args.optim.lr=1e30") == 1
    line = last_line(capsys)
    assert "the loss of step 5 is no finite number (ce is nan" in line
    assert "digits" in line.split("on the images")[1]
    assert "and 11 more: " in line
    assert "optim.lr" in line
    assert epoch_of(tmp_path) == 0
    assert f"{tmp_path}/checkpoints/last.ckpt is kept" in line
    assert not (tmp_path / "class_vectors.safetensors").exists()


def poisoned(step, run):
    """A student's training step whose loss is no number at a step."""
    original = StudentDistillation.training_step

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        if self.trainer.global_step == step:
            run.append(batch[1].tolist())
            loss = loss * torch.nan
            self.loss_terms = {"kl": loss.detach()}
        return loss

    return training_step


def test_a_loss_that_is_no_number_names_the_images_of_its_batch_and_a_next_start_ends_as_an_uncut_run(
    tmp_path, teacher_run, student_run, capsys, monkeypatch
):
    batches = []
    with monkeypatch.context() as patch:
        patch.setattr(StudentDistillation, "training_step", poisoned(4, batches))
        assert fit_student(tmp_path, teacher_run) == 1
    line = last_line(capsys)
    assert "the loss of step 5 is no finite number (kl is nan) on the images " in line
    named = line.split("on the images ")[1].split(" and ")[0].split(", ")
    names = sources()
    assert named == [names[i] for i in batches[0][:5]]
    assert epoch_of(tmp_path) == 0
    assert not (tmp_path / "classifier").exists()
    assert fit_student(tmp_path, teacher_run) == 0
    weights = "classifier/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (student_run / weights).read_bytes()


def sources():
    from kdpl.data.datamodule import DomainDataModule

    return [record.source for record in DomainDataModule("digits").splits.train]


def test_weights_that_are_no_numbers_are_not_saved_though_the_loss_was_one(tmp_path, capsys, monkeypatch):
    original = TeacherPromptTuning.on_train_batch_end

    def poison(self, outputs, batch, batch_idx):
        if self.trainer.global_step == 6:
            next(p for p in self.parameters() if p.requires_grad).data[0] = torch.inf
        original(self, outputs, batch, batch_idx)

    monkeypatch.setattr(TeacherPromptTuning, "on_train_batch_end", poison)
    assert fit_teacher(tmp_path) == 1
    assert "what is trained is no finite number any more after step 6: lower model." in last_line(capsys)
    assert epoch_of(tmp_path) == 0


class Scaled:
    """What FiniteLoss asks of a trainer, with a gradient scaler or without."""

    def __init__(self, scaler):
        self.precision_plugin = type("Plugin", (), {"scaler": scaler})()
        self.strategy = type("Strategy", (), {"reduce_boolean_decision": staticmethod(lambda own, **_: own)})()
        self.train_dataloader = None
        self.current_epoch = self.global_step = 0


def fed(losses, scaler, every):
    callback, trainer = FiniteLoss(every), Scaled(scaler)
    module = torch.nn.Linear(2, 2)
    callback.on_train_start(trainer, module)
    for step, loss in enumerate(losses, start=1):
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, {"loss": torch.tensor(loss)}, None, step - 1)
    callback.on_save_checkpoint(trainer, module, {})


@pytest.mark.parametrize("every", [1, 2, 3, 20])
def test_the_first_step_is_named_however_seldom_one_looks(every):
    with pytest.raises(TrainingError, match=r"loss of step 3 is no finite number \(loss is inf\)") as error:
        fed([1.0, 2.0, float("inf"), float("nan"), 1.0], None, every)
    assert world.one_sentence(error)


def test_steps_that_a_gradient_scaler_leaves_out_are_no_errors_unless_there_is_nothing_else():
    inf = float("inf")
    fed([inf, 1.0, inf, inf, 1.0, inf], object(), 3)
    with pytest.raises(TrainingError, match="step 4"):
        fed([inf, 1.0, inf, inf, inf, inf], object(), 3)


def test_features_that_are_no_numbers_are_not_kept_in_a_cache(tmp_path, teacher_run, capsys, monkeypatch):
    cache = tmp_path / "cache"
    settings = [*DATA, *STUDENT, *SHORT, f"--model.init_args.teacher={teacher_run}"]
    settings += [f"--data.init_args.teacher_cache={cache}", "--data.init_args.num_workers=0"]
    original = TeacherCache.write

    def poison(self, rows, features):
        features = features.clone()
        features[rows == 17] = torch.nan
        original(self, rows, features)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherCache, "write", poison)
        assert main(["cache", *settings, "--out=unused"]) == 1
    assert "no finite features of 1 images, such as unlabelled image 17 in view 0: " in last_line(capsys)
    # and one that has them, from whatever wrote it, is refused with the image's name
    with monkeypatch.context() as patch:
        patch.setattr(TeacherCache, "write", lambda self, rows, features: write_raw(self, rows, features))
        assert main(["cache", *settings, "--out=unused"]) == 0
    capsys.readouterr()
    assert main(["fit", *settings, f"--out={tmp_path}/out"]) == 1
    assert f"has no finite feature of image {sources()[17]}: " in last_line(capsys)
    assert not (tmp_path / "out" / "config.yaml").exists()


def write_raw(cache, rows, features):
    halves = features.half().numpy()
    halves[rows.numpy() == 17] = float("nan")
    cache.features.write_features(rows.numpy(), halves)
