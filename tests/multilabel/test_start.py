"""Scores of classes from the first step on: what they begin at, and what does not begin them again."""

from types import SimpleNamespace

import pytest
import torch
import world
from lightning.pytorch import Callback

from kdpl.clip import ClipConfig
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import label_tensor
from kdpl.data.options import ClassOptions
from kdpl.errors import ConfigError
from kdpl.multilabel import callback, scores
from kdpl.prompts import PromptConfig
from kdpl.runtime.predictions import spread
from kdpl.teacher import TeacherPromptTuning


def pages(table, **settings):
    own = {"shots": 4, "val_shots": 4, "batch_size": 8, "num_workers": 0, **settings}
    classes = ClassOptions(label_separator=";", empty_labels="no_class")
    return DomainDataModule("table", str(table), classes=classes, **own)


def make_teacher():
    torch.manual_seed(0)
    clip, size = ClipConfig("test-teacher-quickgelu", world.TAG), PromptConfig(2, 2)
    return TeacherPromptTuning(clip, vision_prompts=size, text_prompts=size)


def fit(table, folder, *callbacks, **settings):
    module, data = make_teacher(), pages(table, **settings)
    trainer = world.quiet_trainer(folder, 1, callbacks=[*callbacks])
    trainer.fit(module, datamodule=data)
    return module, data, trainer


@pytest.mark.parametrize("eval_batch_size", [2, 40])
def test_scores_are_fitted_to_labelled_images_from_all_over_the_list(
    table, tmp_path, monkeypatch, eval_batch_size
):
    seen = []

    def note(self, logits, labels):
        seen.append(labels)

    monkeypatch.setattr(scores.ScaleAndBias, "fit", note)
    monkeypatch.setattr(scores, "_STARTING_LABELS", 10)
    _, data, _ = fit(table, tmp_path, eval_batch_size=eval_batch_size)
    records = spread(data.labels.training(), 10)
    assert len(data.labels.training()) > 10
    assert torch.stack([label_tensor(each.label, 5) for each in records]).equal(seen[0])


def test_a_test_or_a_second_fit_after_a_fit_keeps_what_scores_were_learned(
    table, tmp_path, monkeypatch
):
    module, data, trainer = fit(table, tmp_path)
    learned = {name: value.clone() for name, value in module.scores.state_dict().items()}
    trainer.test(module, datamodule=data)
    assert all(value.equal(learned[name]) for name, value in module.scores.state_dict().items())

    monkeypatch.setattr(scores.ScaleAndBias, "fit", None)
    world.quiet_trainer(tmp_path / "more", 1).fit(module, datamodule=pages(table))
    assert module.scores.center.equal(learned["center"])


def test_every_process_starts_at_the_scores_of_the_first(table, tmp_path, monkeypatch):
    def broadcast(value, src):
        assert src == 0
        value.fill_(0.5)

    group = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, broadcast=broadcast
    )
    monkeypatch.setattr(scores, "distributed", group)
    started, note = {}, Callback()
    note.on_train_start = lambda _, module: started.update(
        {name: value.clone() for name, value in module.scores.state_dict().items()}
    )
    fit(table, tmp_path, note)
    assert started.keys() == {"log_scale", "bias", "center"}
    assert all((value == 0.5).all() for value in started.values())


def test_thresholds_are_not_chosen_for_a_teacher_that_hands_none_over(table, tmp_path, monkeypatch):
    monkeypatch.setattr(callback, "choose", None)
    module, _, _ = fit(table, tmp_path)
    assert module.task.thresholds is None


def test_a_loss_that_compares_features_is_refused(table, tmp_path):
    fit(table, tmp_path / "teacher")
    student = world.make_student(tmp_path / "teacher", distill="l1")
    with world.refused(ConfigError, "loss.kind l1 compares features, and teaches no scale"):
        world.fit(student, tmp_path / "student", domain=pages(table))


def test_names_with_the_separator_of_predictions_are_refused_before_training(table, tmp_path):
    lines = [f'{table.parent}/train{i}.png,"{"one,a;b" if i else ","}"' for i in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *lines]))
    own = {"classes": ClassOptions(label_separator=","), "shots": None, "num_workers": 0}
    data = DomainDataModule("table", str(tmp_path / "t.csv"), **own)
    with world.refused(ConfigError, "class 'a;b' has a ';' in its name"):
        world.quiet_trainer(tmp_path).fit(make_teacher(), datamodule=data)


def test_the_published_choice_of_an_epoch_is_refused(table, tmp_path):
    choice = pytest.importorskip("kdpl.benchmark.choice")
    with world.refused(ConfigError, "BestOnBaseTest is defined for images of one class each"):
        fit(table, tmp_path, choice.BestOnBaseTest())


def test_scores_do_not_diverge_under_sgd_with_the_published_weight(table, tmp_path):
    fit(table, tmp_path / "teacher")
    student = world.make_student(tmp_path / "teacher", kd_weight=1000)
    world.fit(student, tmp_path / "student", epochs=5, domain=pages(table))
    assert student.scores.log_scale.abs().max() < 0.5


def test_scores_learn_as_if_the_loss_had_no_weight(table, tmp_path):
    fit(table, tmp_path / "teacher")
    gradients = []
    for weight in (1, 1000):
        student = world.make_student(tmp_path / "teacher", kd_weight=weight)
        keep = lambda s: [p.grad.clone() for p in s.scores.parameters()]  # noqa: E731
        kept = []
        step = Callback()
        step.on_before_optimizer_step = lambda _, s, __, keep=keep, kept=kept: kept.append(keep(s))
        world.fit(
            student,
            tmp_path / f"{weight}",
            callbacks=[step],
            domain=pages(table),
            limit_train_batches=1,
        )
        gradients.append(kept[0])
    for once, weighted in zip(*gradients, strict=True):
        torch.testing.assert_close(weighted, once)
