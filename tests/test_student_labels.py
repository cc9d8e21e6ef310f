"""Labels in stage 2, an option of the student."""

import json

import plain
import pytest
import runs
import torch
import world
from plain import relative_error
from safetensors.torch import load_file
from test_student import IMAGES, PlainStudent, refuse
from torch.utils.data import DataLoader
from world import make_student

from kdpl import Classifier
from kdpl.callbacks.head_mix import MIXES, mix_losses
from kdpl.data.datasets import Accompanied
from kdpl.errors import ConfigError
from kdpl.optim import OptimConfig
from kdpl.prompts import PromptConfig
from kdpl.runtime.run_folder import CLASSIFIER_FOLDER


class LabeledDomain(world.TinyDomain):
    """Each unlabelled image comes with a labelled one."""

    def train_dataloader(self):
        unlabeled = (self.unlabeled, torch.arange(12), *self.for_teachers())
        parts = (t.split(self.batch_size) for t in (self.labeled, self.labels, *unlabeled))
        batches = [Accompanied(image, label, tuple(rest)) for image, label, *rest in zip(*parts, strict=True)]
        return DataLoader(batches, batch_size=None)


SETTINGS = {"kd_weight": 20, "label_weight": 0.5, "optim": OptimConfig(lr=0.01)}


@pytest.mark.parametrize("distill", ["kl", "mse"])
def test_the_loss_and_all_gradients_are_the_plain_ones(distill, tmp_path, plain_of):
    written = world.write_teacher(tmp_path)
    student = make_student(tmp_path, kd_weight=50, label_weight=0.3, distill=distill)
    domain, heads = LabeledDomain(batch_size=6), []

    def start(student):
        p = PlainStudent(world.disturbed(student, 0.3), *written, plain_of)
        heads.extend(t.detach().double().requires_grad_() for t in (student.label_head.weight, student.label_head.bias))
        return p

    seen = world.fit(student, tmp_path, domain=domain, start=start, limit_train_batches=1)
    p, (weight, bias) = seen.started, heads
    # both kinds of images are one batch for the batch norm
    features = p.features(torch.cat([IMAGES, domain.labeled[:6]]))
    if distill == "kl":
        distance = plain.kl(p.teacher_logits(IMAGES), 17 * features[:6] @ p.vectors.T)
    else:
        distance = ((features[:6] - p.teacher_features(IMAGES)) ** 2).mean()
    loss = 50 * (distance + 0.3 / 5 * plain.cross_entropy(features[6:] @ weight.T + bias, domain.labels[:6]))
    assert seen.losses == [pytest.approx(loss.item(), rel=1e-5)]
    loss.backward()
    expected = {"label_head.weight": weight, "label_head.bias": bias, "encoder.prompts.tokens": p.prompts}
    expected |= {f"encoder.projector.{name}": leaf for name, leaf in p.leaves.items() if name != "layers.0.bias"}
    assert seen.gradients.keys() == expected.keys() | {"encoder.projector.layers.0.bias"}
    for name, leaf in expected.items():
        assert relative_error(seen.gradients[name], leaf.grad) < 1e-5, name


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("test-student", {}),
        ("test-student", {"text_features": "student"}),
        ("test-timm", {"vision_prompts": PromptConfig(2, 0), "fine_tune": True}),
    ],
    ids=["projector", "no projector", "timm"],
)
def test_test_and_classifier_use_the_mixture_that_was_chosen_on_validation_images(model, options, tmp_path, capsys):
    world.write_teacher(tmp_path, num_base=None)
    student = make_student(tmp_path, model, **SETTINGS, **options)
    domain = LabeledDomain(image_size=student.resizing.image_size)
    world.fit(student, tmp_path, 2, domain=domain, save=True)
    student.eval()
    features = student.encoder(domain.test_images)
    logits, label_logits = student.head.module(features, student.logit_scale), student.label_head(features)
    alpha, beta = MIXES[int(mix_losses(logits, label_logits, domain.test_labels).argmin())]
    assert (alpha, beta) != (0.5, 1.0)
    assert (
        f"label head: α = {alpha:g} and β = {beta:g}, chosen by log loss on the validation" in capsys.readouterr().err
    )
    expected = alpha * label_logits.softmax(1) + (1 - alpha) * (logits / beta).softmax(1)
    classifier = Classifier.load(tmp_path / CLASSIFIER_FOLDER)
    for found in (student.class_logits(domain.test_images), classifier(domain.test_images)):
        assert relative_error(found.softmax(dim=1), expected) < 1e-5
    (top,) = classifier.predict([domain.test_images[0]])
    assert top[0].probability == pytest.approx(expected[0].max().item(), rel=1e-4)
    # a test reads the checkpoint alone
    fresh = make_student(tmp_path, model, **SETTINGS, **options)
    metrics = world.evaluate(fresh, tmp_path, domain, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert metrics["test/acc"] == pytest.approx((expected.argmax(1) == domain.test_labels).double().mean().item())
    assert (fresh.label_head.alpha, fresh.label_head.beta) == (alpha, beta)


def test_without_validation_images_both_heads_count_alike(tmp_path, capsys):
    class Unvalidated(LabeledDomain):
        def val_dataloader(self):
            return []

    world.write_teacher(tmp_path, num_base=None)
    world.fit(make_student(tmp_path, **SETTINGS), tmp_path, domain=Unvalidated())
    head = json.loads((tmp_path / CLASSIFIER_FOLDER / "classifier.json").read_text())["label_head"]
    assert head == {"alpha": 0.5, "beta": 1.0}
    assert "α = 0.5 and β = 1, as there are no validation images" in capsys.readouterr().err


STEPS = ["--trainer.limit_train_batches=4", "--checkpoint_every=1", "--model.init_args.label_weight=1"]


def test_a_fit_interrupted_within_an_epoch_is_resumed_bit_for_bit(teacher_run, tmp_path, capsys):
    def fail():
        raise RuntimeError("interrupted")

    assert runs.fit_student(tmp_path / "whole", teacher_run, *STEPS) == 0
    assert (
        "labels in the batches of stage 2: 160 of 700; validation: 198 of 198; in no stage: 540 (shots 16)"
        in capsys.readouterr().err
    )
    with runs.at_step(6, fail), pytest.raises(RuntimeError, match="interrupted"):
        runs.fit_student(tmp_path / "resumed", teacher_run, *STEPS)
    assert runs.fit_student(tmp_path / "resumed", teacher_run, *STEPS) == 0
    whole, resumed = (
        load_file(tmp_path / run / CLASSIFIER_FOLDER / "model.safetensors") for run in ("whole", "resumed")
    )
    assert whole.keys() == resumed.keys() >= {"label_head.weight", "label_head.bias"}
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    configs = [(tmp_path / run / CLASSIFIER_FOLDER / "classifier.json").read_bytes() for run in ("whole", "resumed")]
    assert configs[0] == configs[1]


class TestRefusals:
    def test_a_negative_weight(self, tmp_path):
        world.write_teacher(tmp_path)
        with world.refused(ConfigError, "label_weight is -1: it must be above 0, or 0 for"):
            make_student(tmp_path, label_weight=-1)

    @pytest.mark.parametrize(
        ("options", "lacks"),
        [
            ({"protocol": "base_to_novel"}, r"'five' has none \(shots None, protocol base_to_novel\)"),
            ({"shots": 0}, r"'zero' has none \(shots 0, protocol all\)"),
        ],
    )
    def test_classes_without_labels(self, options, lacks, teacher_folder, tmp_path):
        match = f"label_weight needs labelled images of every class, but {lacks}: set label_weight to 0"
        student = make_student(teacher_folder, label_weight=1.0)
        refuse(student, tmp_path, ConfigError, match, world.digits(8, **options))
