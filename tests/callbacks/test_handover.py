import pytest
import torch
import world
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from kdpl.callbacks import FreezeClassVectors, SaveClassifier
from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.prompts.student_encoder import StudentEncoder
from kdpl.prompts.tuned import TunedPrompts

FILES = ["class_vectors.safetensors", "prompts.safetensors"]


class Teacher(LightningModule):
    """Stands for a teacher: one number is tuned, and it shows in what is handed over."""

    def __init__(self):
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1))
        self.frozen = 0

    def training_step(self, _):
        return -self.number.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def train_dataloader(self):
        return DataLoader([1, 2])

    def tuned_prompts(self):
        return world.tuned_prompts({"vision_prompts.tokens": self.number.detach().reshape(1, 1, 1)})

    def class_vectors(self):
        self.frozen += 1
        return world.frozen_vectors("test-teacher", teacher=self.tuned_prompts().teacher)


class At(Callback):
    """Does something at the end of the first epoch."""

    def __init__(self, action):
        self.action = action

    def on_train_epoch_end(self, trainer, _):
        if trainer.current_epoch == 0:
            self.action(trainer)


def stop(trainer):
    trainer.should_stop = True


def fail(_):
    raise RuntimeError("the disk is on fire")


def interrupt(_):
    raise KeyboardInterrupt


def fit(folder, max_epochs=2, *callbacks, teacher=None, ckpt_path=None, **options):
    teacher = teacher or Teacher()
    trainer = world.quiet_trainer(folder, max_epochs, callbacks=[*callbacks, FreezeClassVectors()], **options)
    trainer.fit(teacher, ckpt_path=ckpt_path)
    return teacher


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def number_in(folder):
    return TunedPrompts.load(folder / "prompts.safetensors").tensors["vision_prompts.tokens"].item()


def test_a_finished_fit_hands_over_what_it_ends_with_once(tmp_path):
    teacher = fit(tmp_path)
    assert files(tmp_path) == FILES
    assert number_in(tmp_path) == 4  # two epochs of two steps
    assert teacher.frozen == 1
    vectors = ClassVectors.load(tmp_path / FILES[0])
    assert vectors.class_names == world.NAMES
    assert vectors.teacher == TunedPrompts.load(tmp_path / FILES[1]).teacher


def test_what_other_callbacks_do_after_the_last_epoch_is_handed_over(tmp_path):
    class Average(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                nn.init.constant_(pl_module.number, 0.5)

    trainer = world.quiet_trainer(tmp_path, 2, callbacks=[FreezeClassVectors(), Average()])
    trainer.fit(Teacher())
    assert number_in(tmp_path) == 0.5


def test_a_fit_of_no_epochs_hands_over_what_it_begins_with(tmp_path):
    assert fit(tmp_path, 0).frozen == 1
    assert files(tmp_path) == FILES
    assert number_in(tmp_path) == 0


def test_a_fit_that_is_planned_in_steps_hands_over_at_its_last_step(tmp_path):
    fit(tmp_path, -1, max_steps=3)
    assert number_in(tmp_path) == 3


def test_a_fit_that_is_stopped_early_writes_nothing_and_says_so(tmp_path):
    with pytest.warns(UserWarning, match="training was cut short: start the same command again"):
        teacher = fit(tmp_path, 2, At(stop))
    assert files(tmp_path) == []
    assert teacher.frozen == 0


@pytest.mark.parametrize(("action", "error"), [(fail, RuntimeError), (interrupt, (KeyboardInterrupt, SystemExit))])
def test_a_fit_that_breaks_writes_nothing(action, error, tmp_path):
    with pytest.raises(error):
        fit(tmp_path, 2, At(action))
    assert files(tmp_path) == []


def test_a_fit_that_goes_on_after_a_cut_hands_over_at_its_end(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", filename="cut")
    with pytest.warns(UserWarning, match="cut short"):
        fit(tmp_path, 2, At(stop), checkpoints, enable_checkpointing=True)
    assert files(tmp_path) == ["checkpoints"]
    fit(tmp_path, ckpt_path=tmp_path / "checkpoints" / "cut.ckpt")
    assert number_in(tmp_path) == 4


def test_a_fit_that_was_killed_between_its_end_and_the_handover_hands_over_when_started_again(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", filename="end")
    world.quiet_trainer(tmp_path, 2, callbacks=[checkpoints], enable_checkpointing=True).fit(Teacher())
    fit(tmp_path, ckpt_path=tmp_path / "checkpoints" / "end.ckpt")
    assert number_in(tmp_path) == 4


def break_writing(monkeypatch, module, which):
    """Make the n-th call of a module's save_file write half a file and raise."""
    calls = []

    def half_written(tensors, path, metadata=None):
        calls.append(path)
        if len(calls) == which:
            path.write_bytes(b"half")
            raise OSError("no space left on device")
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr(f"{module}.save_file", half_written)


@pytest.mark.parametrize(("which", "left"), [(1, []), (2, ["prompts.safetensors"])])
def test_nothing_half_written_stays_when_writing_fails(which, left, tmp_path, monkeypatch):
    break_writing(monkeypatch, "kdpl.runtime.artifacts", which)
    with pytest.raises(OSError, match="no space left"):
        fit(tmp_path)
    assert files(tmp_path) == left


def test_what_was_there_stays_when_writing_fails(tmp_path, monkeypatch):
    fit(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    break_writing(monkeypatch, "kdpl.runtime.artifacts", 1)
    with pytest.raises(OSError, match="no space left"):
        fit(tmp_path, 3)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before


class TestSaveClassifier:
    @pytest.fixture
    def student(self, clip_of, tmp_path):
        clip = clip_of("test-student")
        encoder = StudentEncoder(clip.image_tower, 2, 2, 24)

        class Student(Teacher):
            vectors = world.frozen_vectors()
            class_vectors_path = tmp_path / "class_vectors.safetensors"

            def classifier(self):
                return Classifier(encoder, self.vectors, 17.0, clip.identity)

        return Student()

    def fit(self, student, folder, *callbacks):
        world.quiet_trainer(folder, 2, callbacks=[*callbacks, SaveClassifier()]).fit(student)

    def test_a_finished_fit_leaves_a_classifier(self, student, tmp_path):
        self.fit(student, tmp_path)
        assert files(tmp_path) == ["classifier"]
        assert Classifier.load(tmp_path / "classifier").class_names == world.NAMES

    def test_a_fit_that_is_stopped_early_leaves_none(self, student, tmp_path):
        with pytest.warns(UserWarning, match="cut short"):
            self.fit(student, tmp_path, At(stop))
        assert files(tmp_path) == []

    def test_nothing_half_written_stays_when_writing_fails(self, student, tmp_path, monkeypatch):
        break_writing(monkeypatch, "kdpl.classifier", 1)
        with pytest.raises(OSError, match="no space left"):
            self.fit(student, tmp_path)
        assert files(tmp_path) == []

    def test_an_older_classifier_stays_whole_when_writing_fails_and_is_replaced_when_it_does_not(
        self, student, tmp_path, monkeypatch
    ):
        (tmp_path / "classifier").mkdir()
        (tmp_path / "classifier" / "classifier.json").write_text("old")
        with monkeypatch.context() as patch:
            break_writing(patch, "kdpl.classifier", 1)
            with pytest.raises(OSError, match="no space left"):
                self.fit(student, tmp_path)
        assert files(tmp_path / "classifier") == ["classifier.json"]
        self.fit(student, tmp_path)
        assert files(tmp_path) == ["classifier"]
        assert files(tmp_path / "classifier") == ["classifier.json", "model.safetensors"]
