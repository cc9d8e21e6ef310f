"""The published choice of the epoch, by accuracy on test images."""

from types import SimpleNamespace

import pytest
import torch
import world
from test_student import IMAGES, new_student
from world import make_student

from kdpl import Classifier
from kdpl.benchmark.choice import BestOnBaseTest
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.run_folder import CLASSIFIER_FOLDER


def fit(folder, accuracies, monkeypatch, **options):
    """Fit with these test accuracies, epoch by epoch; returns the student and its record."""
    given = iter(accuracies)
    monkeypatch.setattr("kdpl.benchmark.choice._base_accuracy", lambda *_: next(given))
    student = new_student(folder)
    options |= {"domain": world.TinyDomain(3), "callbacks": [BestOnBaseTest()], "save": True}
    return student, world.fit(student, folder, 4, **options)


def test_the_first_best_epoch_is_the_result_also_of_a_resumed_run(tmp_path, monkeypatch, capsys):
    student, record = fit(tmp_path, [0.2, 0.6, 0.5, 0.6], monkeypatch)
    assert all(torch.equal(v, record.epochs[1][k]) for k, v in student.state_dict().items())
    content = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)
    assert all(torch.equal(v, record.epochs[1][k]) for k, v in content["state_dict"].items())
    read = Classifier.load(tmp_path / CLASSIFIER_FOLDER)
    assert torch.equal(read(IMAGES), student.eval().class_logits(IMAGES))
    said = capsys.readouterr().err
    assert "warning: BestOnBaseTest looks at the TEST set" in said
    chosen = "chosen by its accuracy on the base classes' TEST images (60.00 %)"
    assert f"epoch 2 is the result, {chosen}" in said
    for accuracy, best in ((0.3, 1), (0.7, 3)):
        resumed, again = fit(tmp_path, [accuracy], monkeypatch, ckpt_path=tmp_path / "epoch=2.ckpt")
        expected = record.epochs[1] if best == 1 else again.epochs[-1]
        assert all(torch.equal(v, expected[k]) for k, v in resumed.state_dict().items())


@pytest.mark.parametrize("steps", [3, 4])
def test_a_number_of_steps_may_end_the_training(steps, tmp_path, monkeypatch):
    student, record = fit(tmp_path, [0.6, 0.5], monkeypatch, max_steps=steps, limit_train_batches=2)
    assert len(record.epochs) == 2
    assert all(torch.equal(v, record.epochs[0][k]) for k, v in student.state_dict().items())


@pytest.mark.parametrize(("num_base", "metric"), [(3, "test/base_acc"), (None, "test/acc")])
def test_the_accuracy_is_that_of_a_test_on_the_base_classes(num_base, metric, tmp_path):
    world.write_teacher(tmp_path, num_base=num_base)
    student, domain = make_student(tmp_path), world.TinyDomain(num_base)
    logged = world.fit(student, tmp_path, domain=domain, callbacks=[BestOnBaseTest()]).logged
    chosen = logged["choice/test_base_acc"]
    assert 0 < chosen == pytest.approx(world.evaluate(student, tmp_path, domain)[metric])


def test_without_test_images_or_where_a_run_began_without_it_it_is_refused(tmp_path):
    student, domain = new_student(tmp_path), world.TinyDomain(3)
    world.fit(new_student(tmp_path), tmp_path, domain=domain, save=True)
    options = {"domain": domain, "callbacks": [BestOnBaseTest()]}
    with world.refused(ConfigError, "BestOnBaseTest was not there when the run began"):
        world.fit(student, tmp_path, 2, ckpt_path=tmp_path / "epoch=0.ckpt", **options)
    domain.splits = SimpleNamespace(test=())
    with world.refused(DataError, "BestOnBaseTest needs test images"):
        world.fit(student, tmp_path, **options)
