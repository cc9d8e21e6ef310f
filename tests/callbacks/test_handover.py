import pytest
import torch
import world
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import nn
from torch.utils.data import DataLoader

from kdpl.callbacks.handover import FreezeClassVectors, SaveClassifier
from kdpl.class_vectors import ClassVectors
from kdpl.errors import ConfigError
from kdpl.prompts.tuned import TunedPrompts

FILES = ["class_vectors.safetensors", "prompts.safetensors"]


class Teacher(LightningModule):
    """Stands for a teacher: one number is tuned, and it shows in what is handed over."""

    def __init__(self):
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1))
        self.frozen = 0

    def training_step(self, _):
        loss = -self.number.sum()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def tuned_prompts(self):
        return world.tuned_prompts({"vision_prompts.tokens": self.number.detach().reshape(1, 1, 1)})

    def class_vectors(self):
        self.frozen += 1
        return world.frozen_vectors("test-teacher", teacher=self.tuned_prompts().teacher)


class Steps(world.TinyDomain):
    """Two steps an epoch, and no validation images."""

    def train_dataloader(self):
        return DataLoader([1, 2])

    def val_dataloader(self):
        return []


class At(Callback):
    def __init__(self, action, epoch=0):
        self.action, self.epoch = action, epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            self.action(trainer, pl_module)


def fit(folder, max_epochs=2, *callbacks, module=None, handover=FreezeClassVectors, **options):
    module = module or Teacher()
    trainer = world.quiet_trainer(folder, max_epochs, callbacks=[handover(), *callbacks], **options)
    trainer.fit(module, datamodule=Steps())
    return module


@pytest.mark.parametrize(
    ("epochs", "callbacks", "options", "number"),
    [
        (2, [], {}, 4),  # two epochs of two steps
        (0, [], {}, 0),
        (-1, [], {"max_steps": 3}, 3),
        (9, [EarlyStopping("loss", mode="max", check_on_train_epoch_end=True, patience=2)], {}, 6),
        # whatever another callback does after the last epoch is part of the result
        (2, [At(lambda _, module: nn.init.constant_(module.number, 0.5), epoch=1)], {}, 0.5),
    ],
    ids=["epochs", "no epochs", "steps", "early stopping", "another callback"],
)
def test_a_finished_fit_hands_over_its_result_once(epochs, callbacks, options, number, tmp_path):
    teacher = fit(tmp_path, epochs, *callbacks, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert teacher.frozen == 1
    vectors = ClassVectors.load(tmp_path / FILES[0])
    prompts = TunedPrompts.load(tmp_path / FILES[1])
    assert prompts.tensors["vision_prompts.tokens"].item() == number
    assert vectors.class_names == world.NAMES
    assert vectors.teacher == prompts.teacher


@pytest.mark.parametrize("handover", [FreezeClassVectors, SaveClassifier])
def test_a_fit_that_is_stopped_writes_nothing_and_says_so(handover, tmp_path, capsys):
    module = Teacher()
    module.vectors = world.frozen_vectors()
    module.teacher_folder = tmp_path
    stop = At(lambda trainer, _: setattr(trainer, "should_stop", True))
    fit(tmp_path, 2, stop, module=module, handover=handover)
    assert "training ended early: rerun the same command" in capsys.readouterr().err
    assert module.frozen == 0
    # a student's run has the class vectors that it learns from
    left = [FILES[0]] if handover is SaveClassifier else []
    assert [path.name for path in tmp_path.iterdir()] == left


def test_too_few_validation_images_are_refused_before_the_first_epoch(tmp_path):
    class Few(world.TinyDomain):
        def val_dataloader(self):
            raise ConfigError("1 val image for 2 processes")

    world.write_teacher(tmp_path)
    student = world.make_student(tmp_path)
    with pytest.raises(ConfigError, match="for 2 processes"):
        world.fit(student, tmp_path, domain=Few(num_base=3), callbacks=[world.NoStep()])
