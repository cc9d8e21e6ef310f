"""Continued distillation, beside a plain implementation of its loss, and what it starts from."""

import plain as p
import pytest
import torch
import world
from plain import normalized, relative_error

from kdpl.callbacks import SaveClassifier
from kdpl.errors import ArtifactError, ConfigError
from kdpl.methods.mergetune import ContinuedDistillation
from kdpl.runtime.run_folder import CLASSIFIER_FOLDER

WEIGHTS = {"connectivity": 3.0, "closeness": 200.0, "points": 4}


@pytest.fixture
def finished(tmp_path):
    """The folders of a teacher and of its student, fitted for one epoch."""
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    teacher.mkdir()
    world.write_teacher(teacher)
    module = world.make_student(teacher)
    world.disturbed(module, 0.1)
    world.fit(module, student, domain=world.TinyDomain(num_base=3))
    assert (student / CLASSIFIER_FOLDER).is_dir()
    return teacher, student, module


def continued(teacher, student, **options):
    def kind(clip, teachers, **settings):
        given = {**WEIGHTS, **settings}
        return ContinuedDistillation(str(student), clip=clip, teacher=teachers, **given)

    return world.make_student(teacher, kind=kind, **options)


def plain_features(clip, state, images):
    """Normalised features with the batch's own mean and variance, of images uint8 [B, 3, S, S]."""
    projector = p.PlainProjector({})
    projector.parameters = {
        name.removeprefix("projector."): tensor for name, tensor in state.items()
    }
    features = clip.image_features(images, state["prompts.tokens"])
    return normalized(projector(features, training=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_loss_and_all_gradients_are_the_plain_ones(temperature, tmp_path, finished, plain_of):
    teacher, student, before = finished
    domain = world.TinyDomain(num_base=3)
    module = continued(teacher, student, temperature=temperature)
    kept, moved = {}, {}

    def start(started):
        """What it starts from, and weights some way from there, so that each term matters."""
        for name, tensor in started.encoder.state_dict().items():
            assert torch.equal(tensor, before.encoder.state_dict()[name]), name
            kept[name] = tensor.detach().double().clone()
        world.disturbed(started.encoder, 0.05)
        started.load_teachers()
        images = domain.unlabeled[:4]
        kept["target"] = started.teachers.logits(started.teachers.features(images)).double()
        names = dict(started.encoder.named_parameters())
        for name, tensor in started.encoder.state_dict().items():
            leaf = tensor.detach().double().clone()
            moved[name] = leaf.requires_grad_() if name in names else leaf

    options = {"limit_train_batches": 1, "start": start}
    seen = world.fit(module, tmp_path / "next", domain=domain, **options)

    clip, images, target = plain_of("test-student"), domain.unlabeled[:4], kept.pop("target")
    kept = {name: t for name, t in kept.items() if "num_batches" not in name}
    f, f0 = plain_features(clip, moved, images), plain_features(clip, kept, images).detach()
    vectors = module.vectors.vectors.double()
    line = []
    for point in range(1, 5):
        logits = clip.scale * ((1 - point / 4) * f0 + point / 4 * f) @ vectors.T
        line.append(p.distillation(logits, target, 3.0, temperature))
    trained = {name: leaf for name, leaf in moved.items() if leaf.requires_grad}
    squares = sum(((leaf - kept[name]) ** 2).sum() for name, leaf in trained.items())
    terms = {
        "kl": p.distillation(clip.scale * f @ vectors.T, target, 1000.0, temperature),
        "connectivity": sum(line) / 4,
        "closeness": 200.0 * squares / sum(leaf.numel() for leaf in trained.values()),
    }
    for name, term in terms.items():
        assert seen.logged[f"train/loss_{name}"] == pytest.approx(term.item(), rel=2e-5), name
    sum(terms.values()).backward()
    assert seen.gradients.keys() == {f"encoder.{name}" for name in trained}
    for name, leaf in trained.items():
        mine = seen.gradients[f"encoder.{name}"]
        if name == "projector.layers.0.bias":
            # the batch norm takes it away, so that KL leaves rounding here beside the closeness
            error = (mine - leaf.grad).abs().max() / moved["projector.layers.0.weight"].grad.max()
            assert error < 1e-5
            assert relative_error(mine, leaf.grad) < 0.01
        else:
            assert relative_error(mine, leaf.grad) < 1e-5, name


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path, finished):
    teacher, student, _ = finished
    whole = continued(teacher, student)
    world.fit(whole, tmp_path / "whole", epochs=2, save=True)
    again = continued(teacher, student)
    checkpoint = tmp_path / "whole" / "epoch=0.ckpt"
    world.fit(again, tmp_path / "again", epochs=2, ckpt_path=checkpoint)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not [name for name in whole.state_dict() if "finished" in name]


def test_a_frozen_tower_is_shared_and_writing_the_classifier_stays(tmp_path, finished):
    module = continued(*finished[:2])
    world.fit(module, tmp_path / "next")
    assert module.finished.module.tower is module.encoder.tower
    assert module.finished.module.prompts is not module.encoder.prompts
    assert any(isinstance(each, SaveClassifier) for each in module.configure_callbacks())
    assert (tmp_path / "next" / CLASSIFIER_FOLDER).is_dir()


def test_a_finished_student_that_is_missing_or_another_one_is_refused(tmp_path, finished):
    teacher, student, _ = finished
    other = tmp_path / "other"
    other.mkdir()
    world.write_teacher(other, seed=1)
    with world.refused(ArtifactError, "another teacher or CLIP.*give the settings of its run"):
        world.fit(continued(other, student), tmp_path / "next")
    prompts = world.PromptConfig(1, 3)
    with world.refused(ArtifactError, "cannot be continued .*: give the settings of its run"):
        world.fit(continued(teacher, student, vision_prompts=prompts), tmp_path / "next")
    with world.refused(ArtifactError, "classifier"):
        world.fit(continued(teacher, tmp_path / "none"), tmp_path / "next")


@pytest.mark.parametrize("wrong", [{"points": 0}, {"connectivity": -1.0}, {"distill": "l1"}])
def test_settings_out_of_range_are_refused(wrong, finished):
    with world.refused(ConfigError, "expected 1 point or more, weights of 0 or more, and kl"):
        continued(*finished[:2], **wrong)
