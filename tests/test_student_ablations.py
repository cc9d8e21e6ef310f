"""The paper's ablations as settings of the student, each against the plain implementation."""

from dataclasses import replace

import plain
import pytest
import torch
import world
from plain import normalized, relative_error
from test_student import IMAGES, PlainStudent, first_batch, new_student, require_plain_step
from world import make_student

from kdpl.classifier import Classifier
from kdpl.data.batches import UnlabeledBatch
from kdpl.errors import ArtifactError, ConfigError
from kdpl.prompts import PromptConfig
from kdpl.runtime.resizing import Resizing

NONE = PromptConfig(depth=0)


@pytest.mark.parametrize("distill", ["l1", "mse"])
def test_a_difference_of_logits_is_that_of_the_plain_ones(distill, tmp_path, plain_of):
    _, step = first_batch(tmp_path, plain_of, distill=distill, kd_weight=50)
    difference = step.started.logits(IMAGES) - step.started.teacher_logits(IMAGES)
    total = (difference.abs() if distill == "l1" else difference**2).sum()
    require_plain_step(step, 50 * total / difference.numel())


@pytest.mark.parametrize("layers", [1, 3])
def test_a_projector_has_as_many_linear_layers_as_are_set(layers, tmp_path):
    student = new_student(tmp_path, projector_layers=layers)
    world.fit(student, tmp_path, limit_train_batches=1)
    linear = [m for m in student.encoder.projector.modules() if isinstance(m, torch.nn.Linear)]
    assert [tuple(m.weight.shape) for m in linear] == [(24, 20), *[(24, 24)] * (layers - 1)]
    read = Classifier.load(tmp_path / "classifier")
    assert relative_error(read(IMAGES), student.eval().class_logits(IMAGES)) < 1e-6


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"projector_layers": 0}, "set projector_layers above 0"),
        ({"distill": "l1", "target": "refined"}, "the target Refined has probabilities"),
    ],
)
def test_ablations_that_contradict_each_other_are_refused(options, match, tmp_path):
    with world.refused(ConfigError, match):
        new_student(tmp_path, **options)


def test_fine_tuning_trains_the_whole_tower(tmp_path, plain_of):
    def start(student, *written):
        p = PlainStudent(student, *written)
        state = student.encoder.tower.module.visual.state_dict()
        visual = {f"visual.{name}": tensor for name, tensor in state.items()}
        scale = {"logit_scale": torch.tensor(17.0).log()}
        p.clip = plain.PlainClip(visual | scale, world.CONFIGS["test-student"])
        for tensor in p.clip.state.values():
            tensor.requires_grad_()
        return p

    _, step = first_batch(tmp_path, plain_of, start, fine_tune=True)
    loss = step.started.loss(IMAGES)
    assert step.losses == [pytest.approx(loss.item(), rel=1e-5)]
    loss.backward()
    prefix = "encoder.tower.module."
    gradients = {k.removeprefix(prefix): g for k, g in step.gradients.items() if prefix in k}
    expected = {k: t.grad for k, t in step.started.clip.state.items() if k.startswith("visual.")}
    assert gradients.keys() == expected.keys()
    largest = max(g.abs().max().item() for g in expected.values())
    for name, gradient in expected.items():
        # biases of keys do not change attention: their gradient is rounding, so the scale is that of all
        most = 3e-5 * max(gradient.abs().max().item(), 1e-2 * largest)
        assert (gradients[name].double() - gradient).abs().max() < most, name


def fine_tuned(student):
    """The weights of a student's tower, and how many of them are those of its CLIP."""
    state = student.encoder.tower.module.visual.state_dict()
    weights = world.weights("test-student")
    return len(state), sum(torch.equal(v, weights[f"visual.{k}"]) for k, v in state.items())


def test_a_fine_tuned_tower_is_in_the_checkpoint(tmp_path):
    student = new_student(tmp_path, fine_tune=True, vision_prompts=NONE)
    world.fit(student, tmp_path, save=True, limit_train_batches=1)
    assert fine_tuned(student)[1] == 0
    other = make_student(tmp_path, fine_tune=True, vision_prompts=NONE)
    world.evaluate(other, tmp_path, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert torch.equal(other.eval().class_logits(IMAGES), student.eval().class_logits(IMAGES))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_fine_tuned_tower_stays_in_float32(precision, tmp_path):
    student = new_student(tmp_path, fine_tune=True)
    world.fit(student, tmp_path, precision=precision, limit_train_batches=0)
    number, unchanged = fine_tuned(student)
    assert unchanged == number


@pytest.mark.parametrize(("model", "size"), [("test-resnet", 32), ("test-timm", 48)])
def test_a_student_without_tokens_learns_through_its_projector_alone(model, size, tmp_path):
    student = new_student(tmp_path, model=model, vision_prompts=NONE)
    visual = student.encoder.tower.module.visual
    before = {name: tensor.clone() for name, tensor in visual.state_dict().items()}
    world.fit(student, tmp_path, domain=world.TinyDomain(image_size=size))
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("encoder.projector.layers.") for name in trained)
    # with the statistics of its batch norms
    assert all(torch.equal(v, before[name]) for name, v in visual.state_dict().items())
    with world.refused(ConfigError, r"set vision_prompts\.depth to 0"):
        make_student(tmp_path, model=model)


def test_images_of_a_size_that_the_teacher_does_not_take_are_refused(tmp_path):
    student = new_student(tmp_path, model="test-timm", vision_prompts=NONE)
    images = world.TinyDomain(image_size=48).unlabeled
    assert student.needs.resizing == Resizing(48)
    assert student.needs.teacher == Resizing(32)
    with world.refused(ConfigError, "a batch has no view for it"):
        student.training_step(UnlabeledBatch(images, torch.arange(len(images))), 0)
    student.load_teacher()
    with world.refused(ConfigError, "images of 32 pixels, not 48"):
        student.teacher.module.features(images)


def test_a_finished_student_is_tested_with_further_class_vectors_of_its_teacher_alone(tmp_path):
    vectors, _ = world.write_teacher(tmp_path)
    student, names = make_student(tmp_path), ("gull", "tern", "auk")
    world.fit(student, tmp_path, save=True, limit_train_batches=1)

    def a_test_of(**changes):
        rows = normalized(torch.randn(3, 24, generator=torch.Generator().manual_seed(4)))
        other = replace(vectors, vectors=rows, class_names=names, num_base=None, **changes)
        other.save(tmp_path / "other.safetensors")
        tested = make_student(tmp_path, class_vectors=str(tmp_path / "other.safetensors"))
        world.evaluate(tested, tmp_path, world.TinyDomain(names=names), tmp_path / "epoch=0.ckpt")
        return tested.eval().class_logits(IMAGES), 17 * student.eval().encoder(IMAGES) @ rows.T

    assert relative_error(*a_test_of()) < 1e-6
    with world.refused(ArtifactError, "checkpoint .*teacher"):
        a_test_of(teacher="0" * 32)


def test_both_towers_are_compiled_if_asked_for(tmp_path, monkeypatch):
    widths = []
    monkeypatch.setattr(
        "kdpl.clip.towers.clip_vit.ClassTokenTower.compile_parts",
        lambda tower: widths.append(tower.width),
    )
    world.fit(new_student(tmp_path, compile=True), tmp_path, limit_train_batches=1)
    assert widths == [32, 48], "the student's and the teacher's"
