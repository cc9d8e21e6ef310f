"""examples/plain.py, the whole method on one page, and kdpl compute the same."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import world
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from plain import relative_error

from examples import plain as page
from kdpl.class_vectors import ClassVectors
from kdpl.clip import ClipConfig
from kdpl.prompts import PromptConfig
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE
from kdpl.teacher import AveragingConfig, RegularizerWeights, TeacherPromptTuning

PAGE = Path(page.__file__)
TEACHER, STUDENT = "test-teacher", "test-student"
DOMAIN = world.TinyDomain(num_base=3, batch_size=6)
BASE, NAMES = DOMAIN.tuning_class_names, DOMAIN.class_names
LR = 0.005
LOSS_WEIGHT = 20.0  # a random student is pulled far by steps of the published weight
TUNING, AVERAGING = (5.0, 2.0, 1.5), (2.0, 1.0)


def pixels(images):
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    )
    return (images / 255 - mean) / std


def labeled_batches(epoch):
    return zip(pixels(DOMAIN.labeled).split(6), DOMAIN.labels.split(6), strict=True)


def unlabeled_batches(epoch):
    return pixels(DOMAIN.unlabeled).split(6)


def teacher_of_kdpl():
    torch.manual_seed(0)
    teacher = TeacherPromptTuning(
        ClipConfig(TEACHER, world.TAG),
        vision_prompts=PromptConfig(4, 3),
        text_prompts=PromptConfig(4, 2),
        regularizers=RegularizerWeights(*TUNING),
        averaging=AveragingConfig(*AVERAGING),
    )
    # away from the start, where deep prompts are too small to matter
    return world.disturbed(teacher, 0.3)


def prompts_of(teacher, value=lambda parameter: parameter.detach().clone()):
    """What kdpl's teacher trains, or its gradients, by the names of the page."""
    prompts = teacher.prompts
    context, deep = value(prompts.text_prompts.context), value(prompts.text_prompts.deep)
    return {
        "vision_prompts": value(prompts.vision_prompts.tokens),
        "text_prompts": torch.cat([context[None], deep]),
    }


def teacher_of_the_page(start):
    teacher = page.Teacher(world.clip_of(TEACHER), vision_depth=3, text_depth=2)
    assert {name: p.shape for name, p in teacher.named_parameters()} == {
        name: prompts.shape for name, prompts in start.items()
    }
    teacher.load_state_dict(start)
    return teacher


def student_of_the_page(start):
    student = page.Student(world.clip_of(STUDENT), width=24, depth=3, length=2)
    student.load_state_dict(start)
    return student


def by_the_names_of_the_page(encoder_state):
    """The state of kdpl's student, or its gradients, by the names of the page."""
    names = {"prompts.tokens": "prompts", "projector.layers.": "projector."}
    renamed = {}
    for key, tensor in encoder_state.items():
        name = key.removeprefix("encoder.")
        for kdpl, plain in names.items():
            name = name.replace(kdpl, plain)
        renamed[name] = tensor.detach().clone()
    return renamed


def sgd(module):
    return torch.optim.SGD(module.parameters(), LR, momentum=0.9, weight_decay=5e-4)


def require_equal(actual, expected, but=()):
    assert actual.keys() == expected.keys()
    for name in expected.keys() - set(but):
        assert relative_error(actual[name], expected[name]) < 1e-5, name


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A teacher of kdpl and one of the page, after six steps from the same start."""
    folder, kdpl = tmp_path_factory.mktemp("teacher"), teacher_of_kdpl()
    start = prompts_of(kdpl)
    world.fit(kdpl, folder, epochs=3, domain=world.TinyDomain(num_base=3, batch_size=6))
    plain = teacher_of_the_page(start)
    page.tune_teacher(plain, sgd(plain), labeled_batches, 3, BASE, TUNING, AVERAGING)
    return SimpleNamespace(folder=folder, start=start, kdpl=kdpl, plain=plain)


def test_the_loss_of_stage_1_and_its_gradients_are_equal(tmp_path):
    kdpl = teacher_of_kdpl()
    plain = teacher_of_the_page(prompts_of(kdpl))
    seen = world.fit(
        kdpl, tmp_path, domain=world.TinyDomain(num_base=3, batch_size=6), limit_train_batches=1
    )
    images, labels = next(labeled_batches(0))
    texts = page.template_features(plain.clip, BASE)
    loss = page.promptsrc_loss(plain, images, labels, plain.tokenize(BASE), texts, TUNING)
    loss.backward()
    assert seen.losses == [pytest.approx(loss.item(), rel=1e-5)]
    by_parameter = {id(p): seen.gradients[name] for name, p in kdpl.named_parameters()}
    gradients = prompts_of(kdpl, lambda parameter: by_parameter[id(parameter)])
    require_equal(gradients, {name: p.grad for name, p in plain.named_parameters()})


def test_six_steps_of_stage_1_end_with_equal_averaged_prompts_and_class_vectors(tuned):
    actual, expected = prompts_of(tuned.kdpl), dict(tuned.plain.named_parameters())
    require_equal(actual, expected)
    for name, start in tuned.start.items():
        assert relative_error(expected[name], start) > 1e-3, name
    vectors = ClassVectors.load(tuned.folder / CLASS_VECTORS_FILE)
    assert vectors.class_names == NAMES
    expected_vectors = page.freeze_class_vectors(tuned.plain, NAMES)
    assert relative_error(vectors.vectors, expected_vectors) < 1e-5


def student_of_kdpl(teacher):
    options = {"vision_prompts": PromptConfig(2, 3), "kd_weight": LOSS_WEIGHT}
    return world.disturbed(world.make_student(teacher, STUDENT, **options), 0.3)


# batch norm cancels the bias before it, which rounding alone moves
CANCELLED = {"projector.0.bias"}


def test_the_loss_of_stage_2_and_its_gradients_are_equal(tuned, tmp_path):
    kdpl = student_of_kdpl(tuned.folder)
    plain = student_of_the_page(by_the_names_of_the_page(kdpl.encoder.state_dict()))
    seen = world.fit(
        kdpl, tmp_path, domain=world.TinyDomain(num_base=3, batch_size=6), limit_train_batches=1
    )
    vectors, images = page.freeze_class_vectors(tuned.plain, NAMES), unlabeled_batches(0)[0]
    with torch.no_grad():
        features = tuned.plain.encode_images(images)
        target = page.cosine_logits(features, vectors, tuned.plain.clip.logit_scale)
    loss = page.promptkd_loss(plain(images, vectors), target, LOSS_WEIGHT)
    loss.backward()
    assert seen.losses == [pytest.approx(loss.item(), rel=1e-5)]
    gradients = by_the_names_of_the_page(seen.gradients)
    require_equal(gradients, {name: p.grad for name, p in plain.named_parameters()}, but=CANCELLED)


def test_six_steps_of_stage_2_end_with_equal_students(tuned, tmp_path):
    kdpl = student_of_kdpl(tuned.folder)
    start = by_the_names_of_the_page(kdpl.encoder.state_dict())
    world.fit(kdpl, tmp_path, epochs=3, domain=world.TinyDomain(num_base=3, batch_size=6))
    plain = student_of_the_page(start)
    vectors = page.freeze_class_vectors(tuned.plain, NAMES)
    page.distil_student(
        plain, tuned.plain, vectors, sgd(plain), unlabeled_batches, 3, weight=LOSS_WEIGHT
    )
    require_equal(by_the_names_of_the_page(kdpl.encoder.state_dict()), plain.state_dict())
    for name in ("prompts", "projector.0.weight", "projector.3.bias"):
        assert relative_error(plain.state_dict()[name], start[name]) > 1e-3, name

    images = DOMAIN.test_images
    with torch.no_grad():
        logits = plain(pixels(images), vectors)
        assert relative_error(kdpl.eval().class_logits(images), logits) < 1e-5


def test_the_page_is_short_and_takes_images_and_weights_alone_from_kdpl():
    text = PAGE.read_text(encoding="utf-8")
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 250
    imported = {}
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Import) or "kdpl" not in ast.unparse(node)
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "kdpl":
            imported[node.module] = {alias.name for alias in node.names}
    assert imported == {
        "kdpl": {"DomainDataModule"},
        "kdpl.clip": {"Clip", "ClipConfig", "ImageClip", "load_clip"},
    }


@pytest.mark.slow
def test_the_page_trains_on_the_digits_and_prints_both_accuracies(capsys):
    page.main()
    printed = re.fullmatch(
        r"teacher: ([\d.]+) % of the test images\nstudent: ([\d.]+) % of the test images\n",
        capsys.readouterr().out,
    )
    # processors round differently
    teacher, student = map(float, printed.groups())
    assert teacher == pytest.approx(91.8, abs=1)
    assert student == pytest.approx(86.1, abs=2)
