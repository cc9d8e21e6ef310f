"""Scores of classes from the first step on: what they begin at, and what does not begin them again."""

from types import SimpleNamespace

import pytest
import torch
import world
from lightning.pytorch import Callback
from pages import OF_PAGES, make_teacher, pages, write_table

from kdpl.data.datamodule import DomainDataModule
from kdpl.data.datasets import label_tensor
from kdpl.data.options import ClassOptions
from kdpl.errors import ConfigError
from kdpl.multilabel import scores
from kdpl.runtime.predictions import spread


def fit(table, folder, *callbacks):
    module, data = make_teacher(), pages(table)
    trainer = world.quiet_trainer(folder, 1, callbacks=[*callbacks], limit_train_batches=1)
    trainer.fit(module, datamodule=data)
    return module, data, trainer


@pytest.fixture
def student(tmp_path):
    """A function that makes a student of a teacher of the pages."""
    world.write_teacher(tmp_path, **OF_PAGES)
    return lambda **options: world.make_student(tmp_path, **options)


def test_scores_are_fitted_to_labelled_images_from_all_over_the_list(table, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(scores.ScaleAndBias, "fit", lambda _, *given: seen.append(given[1]))
    monkeypatch.setattr(scores, "_STARTING_LABELS", 10)
    sent, yes = [], dict.fromkeys(("is_available", "is_initialized"), lambda: True)
    group = SimpleNamespace(broadcast=lambda _, src: sent.append(src), **yes)
    monkeypatch.setattr(scores, "distributed", group)
    _, data, _ = fit(table, tmp_path)
    assert sent == [0, 0, 0], "every process starts at the scores of the first"
    training = data.labels.training()
    assert len(training) > 10
    expected = [label_tensor(record.label, 5) for record in spread(training, 10)]
    assert torch.stack(expected).equal(seen[0])


def test_a_test_or_a_second_fit_after_a_fit_keeps_what_scores_were_learned(
    table, tmp_path, monkeypatch
):
    module, data, trainer = fit(table, tmp_path)
    # a teacher hands no thresholds over
    assert module.task.thresholds is None
    learned = {name: value.clone() for name, value in module.scores.state_dict().items()}
    trainer.test(module, datamodule=data, verbose=False)
    assert all(value.equal(learned[name]) for name, value in module.scores.state_dict().items())

    monkeypatch.setattr(scores.ScaleAndBias, "fit", None)
    again = world.quiet_trainer(tmp_path / "more", 1, limit_train_batches=1)
    again.fit(module, datamodule=pages(table))
    assert module.scores.center.equal(learned["center"])


def test_names_with_the_separator_of_predictions_are_refused_before_training(table, tmp_path):
    rows = [(table.parent / f"train{i}.png", "one,a;b" if i else ",") for i in range(4)]
    root = write_table(tmp_path / "t.csv", ("image", "label"), *rows)
    classes = ClassOptions(label_separator=",")
    data = DomainDataModule("table", str(root), classes=classes, shots=None, num_workers=0)
    with world.refused(ConfigError, "class 'a;b' has a ';' in its name"):
        world.quiet_trainer(tmp_path).fit(make_teacher(), datamodule=data)


def test_the_published_choice_of_an_epoch_is_refused(table, tmp_path):
    choice = pytest.importorskip("kdpl.benchmark.choice")
    with world.refused(ConfigError, "BestOnBaseTest is defined for images of one class each"):
        fit(table, tmp_path, choice.BestOnBaseTest())


def test_scores_learn_as_if_the_loss_had_no_weight(table, tmp_path, student):
    gradients = []
    for weight in (1, 1000):
        kept, step = [], Callback()
        step.on_before_optimizer_step = lambda _, module, __, kept=kept: kept.extend(
            parameter.grad.clone() for parameter in module.scores.parameters()
        )
        options = {"callbacks": [step], "domain": pages(table), "limit_train_batches": 1}
        world.fit(student(kd_weight=weight), tmp_path / f"{weight}", **options)
        gradients.append(kept)
    for once, weighted in zip(*gradients, strict=True):
        torch.testing.assert_close(weighted, once)
