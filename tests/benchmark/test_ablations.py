"""Students of the paper's ablations: each against the plain implementation, and each config from fit to export."""

import shutil
from functools import partial

import onnxruntime
import plain
import pytest
import torch
import world
from differences import differences
from plain import normalized, relative_error
from runs import CONFIGS, at_step, curves_of, fit_student
from test_student import IMAGES, first_batch, new_student, require_plain_step
from world import make_student

from kdpl.__main__ import main
from kdpl.benchmark.ablations import FeatureDistillation, OwnTextFeatures
from kdpl.classifier import Classifier
from kdpl.errors import ArtifactError, ConfigError
from kdpl.targets.labeled import Labeled


@pytest.mark.parametrize("distill", ["l1", "mse"])
def test_a_difference_of_features_is_that_of_the_plain_ones(distill, tmp_path, plain_of):
    make = partial(make_student, kind=FeatureDistillation)
    _, step = first_batch(tmp_path, plain_of, make=make, distill=distill, kd_weight=50)
    difference = step.started.features(IMAGES) - step.started.teacher_features(IMAGES)
    total = (difference.abs() if distill == "l1" else difference**2).sum()
    require_plain_step(step, 50 * total / difference.numel())


def test_features_have_no_divergence(tmp_path):
    with world.refused(ConfigError, "features have no loss.kind kl"):
        new_student(tmp_path, kind=FeatureDistillation)


def test_a_student_with_text_features_of_its_own_is_the_plain_one(tmp_path, plain_of):
    def start(student, vectors, teacher_prompts, _):
        prompts = student.encoder.prompts.tokens.detach().double().requires_grad_()
        return vectors, teacher_prompts, prompts

    make = partial(make_student, kind=OwnTextFeatures)
    student, step = first_batch(tmp_path, plain_of, start, make=make)
    vectors, teacher_prompts, prompts = step.started
    clip, teacher = plain_of("test-student"), plain_of("test-teacher-quickgelu")
    texts = [plain.prompt_text("a photo of a", name) for name in world.NAMES]
    text = normalized(clip.text_features(texts))
    logits = 17 * normalized(clip.image_features(IMAGES, prompts)) @ text.T
    teacher_features = normalized(teacher.image_features(IMAGES, teacher_prompts.double()))
    loss = plain.distillation(logits, 30 * teacher_features @ vectors.vectors.double().T, 1000, 1)
    assert step.losses == [pytest.approx(loss.item(), rel=1e-5)]
    loss.backward()
    assert list(step.gradients) == ["encoder.prompts.tokens"], "there is no projector"
    assert relative_error(step.gradients["encoder.prompts.tokens"], prompts.grad) < 1e-5
    # what is shipped has its class vectors and no projector, and takes no class of the teacher's
    student.classifier().save(tmp_path / "classifier")
    read = Classifier.load(tmp_path / "classifier")
    assert relative_error(read.vectors.vectors, text) < 1e-5
    assert relative_error(read(IMAGES), student.eval().class_logits(IMAGES)) < 1e-6
    with world.refused(ArtifactError, "another tuned teacher"):
        read.vectors.require_teacher(vectors)


def test_a_label_is_mixed_with_the_teachers_prediction_where_there_is_one():
    target = Labeled(0.25)
    target._images, target._labels = torch.tensor([2, 7]), torch.tensor([1, 0])
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    mixed = target.logits(logits, torch.tensor([7, 3, 2]))
    expected = logits.double().softmax(dim=1)
    for row, label in ((0, 0), (2, 1)):
        expected[row] *= 0.75
        expected[row, label] += 0.25
    assert relative_error(mixed.softmax(dim=1), expected) < 1e-6
    assert torch.equal(mixed[1], logits[1])


OVERLAYS = ["feature_l1", "own_text_features", "labeled"]
LIKE = [pytest.param(n, marks=pytest.mark.slow) for n in ("feature_mse", "logit_l1", "logit_mse")]


@pytest.mark.usefixtures("without_companions")
@pytest.mark.parametrize("name", [*OVERLAYS, *LIKE])
def test_an_ablation_is_fitted_resumed_as_if_uninterrupted_tested_and_exported(
    name, teacher_run, tmp_path
):
    config = f"--config={CONFIGS}/student/{name}.yaml"
    # students share targets in its folder
    teacher = shutil.copytree(teacher_run, tmp_path / "teacher")
    whole, out = (tmp_path / place / "student" for place in ("whole", "resumed"))
    assert fit_student(whole, teacher, config) == 0

    def interrupt():
        raise KeyboardInterrupt

    with at_step(4, interrupt):
        assert fit_student(out, teacher, config) == 130
    assert fit_student(out, teacher, config) == 0
    # config.yaml names the folder, and the resumed epoch has the means of the later steps
    assert set(differences(whole, out)) <= {
        "config.yaml differs",
        *(f"metrics.csv: {key} differs" for key in curves_of(whole) if key.startswith("train/")),
    }
    assert main(["test", f"--config={out}/config.yaml"]) == 0
    onnx = tmp_path / "student.onnx"
    assert main(["export", str(out / "classifier"), "--format=onnx", f"--out={onnx}"]) == 0
    assert onnxruntime.InferenceSession(onnx).get_inputs()
