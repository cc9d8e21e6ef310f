from dataclasses import replace
from types import SimpleNamespace

import plain
import pytest
import torch
import world
from plain import PlainProjector, normalized, relative_error
from world import make_student

from kdpl.classifier import Classifier
from kdpl.data.batches import UnlabeledBatch
from kdpl.errors import ArtifactError, ConfigError
from kdpl.module import ORIGIN_KEY
from kdpl.optim import OptimConfig
from kdpl.prompts import PromptConfig
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, PROMPTS_FILE
from kdpl.targets import Target

IMAGES = world.TinyDomain().unlabeled[:6]


def new_student(folder, **options):
    """A student of a teacher that is written into the folder first."""
    world.write_teacher(folder)
    return make_student(folder, **options)


class PlainStudent:
    """A student, its teacher and their logits in the plain implementation; starts where ``student`` is."""

    def __init__(self, student, vectors, teacher_prompts, plain_of):
        self.clip, self.teacher_clip = plain_of("test-student"), plain_of("test-teacher-quickgelu")
        self.vectors = vectors.vectors.double()
        self.teacher_prompts = None if teacher_prompts is None else teacher_prompts.double()
        prompts = student.encoder.prompts
        self.prompts = prompts and prompts.tokens.detach().double().requires_grad_()
        self.projector = PlainProjector(student.encoder.projector.state_dict())
        parameters = self.projector.parameters.items()
        self.leaves = {k: v.requires_grad_() for k, v in parameters if "running" not in k}

    def features(self, images, training=True):
        return normalized(self.projector(self.clip.image_features(images, self.prompts), training))

    def logits(self, images, training=True):
        return 17 * self.features(images, training) @ self.vectors.T

    def teacher_features(self, images):
        return normalized(self.teacher_clip.image_features(images, self.teacher_prompts))

    def teacher_logits(self, images):
        return 30 * self.teacher_features(images) @ self.vectors.T

    def loss(self, images, weight=1000, temperature=1.0):
        return plain.distillation(
            self.logits(images), self.teacher_logits(images), weight, temperature
        )


def started(kind, written, plain_of):
    """Move a student away from its start, and make the plain one that starts there."""
    return lambda student: kind(world.disturbed(student, 0.3), *written, plain_of)


def first_batch(
    folder,
    plain_of,
    kind=PlainStudent,
    depth=2,
    precision="32-true",
    make=make_student,
    **options,
):
    """Distil from a new teacher for one batch, ``IMAGES``; returns the student and its record.

    The plain student, of this ``kind``, is the record's ``started``.
    """
    written = world.write_teacher(folder, depth=depth)
    student, domain = make(folder, **options), world.TinyDomain(num_base=3, batch_size=6)
    start = started(kind, written, plain_of)
    settings = {"limit_train_batches": 1, "precision": precision}
    return student, world.fit(student, folder, domain=domain, start=start, **settings)


def require_plain_step(seen, loss):
    """Require the loss and the gradients of all that is trained to be those of the plain student."""
    expected = seen.started
    assert seen.losses == [pytest.approx(loss.item(), rel=1e-5)]
    assert seen.logged["train/loss"] == pytest.approx(seen.losses[0])
    loss.backward()
    gradients = {k.removeprefix("encoder."): g for k, g in seen.gradients.items()}
    prompts = set() if expected.prompts is None else {"prompts.tokens"}
    assert gradients.keys() == prompts | {f"projector.{name}" for name in expected.leaves}
    for name in prompts:
        for layer, gradient in zip(expected.prompts.grad, gradients[name], strict=True):
            assert relative_error(gradient, layer) < 1e-5
    for name, leaf in expected.leaves.items():
        if name != "layers.0.bias":  # batch norm cancels it: its gradient is rounding alone
            assert relative_error(gradients[f"projector.{name}"], leaf.grad) < 1e-5, name


@pytest.mark.parametrize(
    ("weight", "temperature", "teacher_depth", "depth"),
    [(1000.0, 1.0, 2, 3), (200.0, 3.0, 0, 3), (50.0, 0.5, 3, 0)],
)
def test_the_loss_and_all_gradients_are_the_plain_ones(
    weight, temperature, teacher_depth, depth, tmp_path, plain_of
):
    options = {"vision_prompts": PromptConfig(2, depth), "temperature": temperature}
    _, seen = first_batch(tmp_path, plain_of, depth=teacher_depth, kd_weight=weight, **options)
    expected = seen.started
    same = expected.logits(IMAGES).argmax(dim=1) == expected.teacher_logits(IMAGES).argmax(dim=1)
    assert seen.logged["train/agreement"] == pytest.approx(same.double().mean().item())
    require_plain_step(seen, expected.loss(IMAGES, weight, temperature))


def test_a_custom_target_is_found_by_its_class_path(tmp_path, plain_of, monkeypatch):
    class Halved(Target):
        def logits(self, predicted, indices):
            assert indices.tolist() == list(range(6))
            return predicted / 2

    monkeypatch.setattr(world, "Halved", Halved, raising=False)
    _, seen = first_batch(tmp_path, plain_of, target="world.Halved")
    halved = seen.started.teacher_logits(IMAGES) / 2
    require_plain_step(seen, plain.distillation(seen.started.logits(IMAGES), halved, 1000, 1))


def test_a_batch_below_the_published_one_is_warned_of_and_one_image_is_refused(tmp_path, capsys):
    for images, warnings in ((2, 1), (8, 0)):
        domain = world.TinyDomain(num_base=3, batch_size=images)
        world.fit(new_student(tmp_path), tmp_path, domain=domain, limit_train_batches=1)
        assert capsys.readouterr().err.count("batch norm") == warnings
    domain = world.TinyDomain(num_base=3, batch_size=1)
    with pytest.raises(ConfigError, match="batch_size"):
        world.fit(new_student(tmp_path), tmp_path, domain=domain)


# a random student is pulled far by one step of the published weight
SETTINGS = {"kd_weight": 20, "optim": OptimConfig(lr=0.01)}


@pytest.fixture(scope="module")
def distilled(tmp_path_factory, plain_of):
    """A student after three epochs, its folder, its record, and the accuracies of its test."""
    teacher, folder = tmp_path_factory.mktemp("teacher"), tmp_path_factory.mktemp("student")
    start = started(PlainStudent, world.write_teacher(teacher), plain_of)
    student = make_student(teacher, **SETTINGS)
    record = world.fit(student, folder, 3, start=start, save=True)
    made = {"student": student, "teacher": teacher, "folder": folder, "record": record}
    return SimpleNamespace(**made, metrics=world.evaluate(student, folder))


def test_nine_steps_of_the_trainer_are_nine_plain_steps(distilled):
    student, images = distilled.record.started, world.TinyDomain().unlabeled

    def tensors():
        # the running statistics are new tensors in each step
        projector = {f"projector.{k}": v for k, v in student.projector.parameters.items()}
        return {"prompts.tokens": student.prompts, **projector}

    start = {name: tensor.detach().clone() for name, tensor in tensors().items()}
    optimizer = plain.PlainSGD([student.prompts, *student.leaves.values()])
    for epoch, saved in enumerate(distilled.record.epochs):
        state = {name.removeprefix("encoder."): tensor for name, tensor in saved.items()}
        for batch in images.split(4):
            optimizer.step(student.loss(batch, weight=20), plain.learning_rate(epoch, 3, 0.01))
        for name, expected in tensors().items():
            assert relative_error(state[name], expected) < 1e-5, (epoch, name)
            # batch norm cancels the first bias, which rounding alone moves
            if epoch > 0 and not name.endswith("layers.0.bias"):
                # what was learned may be small beside what it was added to
                learned = state[name] - start[name]
                assert relative_error(learned, expected - start[name]) < 1e-4, (epoch, name)
        assert state["projector.layers.1.num_batches_tracked"] == 3 * (epoch + 1)


def test_evaluation_is_the_plain_one_with_running_statistics(distilled, plain_of):
    domain, student = world.TinyDomain(num_base=3), distilled.student
    plain_student = PlainStudent(student, student.vectors, None, plain_of)
    logits = plain_student.logits(domain.test_images, training=False)
    assert relative_error(student.eval().class_logits(domain.test_images), logits) < 1e-5
    expected = plain.accuracies(logits, domain.test_labels, 3)
    assert distilled.metrics == pytest.approx({f"test/{k}": v for k, v in expected.items()})


def test_frozen_towers_stay_as_they_are_and_a_checkpoint_holds_what_was_learned_alone(distilled):
    student = distilled.student
    teacher = student.teacher.module
    world.assert_untouched(student.encoder.tower.module.visual, "test-student", "visual.")
    world.assert_untouched(teacher.tower.visual, "test-teacher-quickgelu", "visual.")
    written = TunedPrompts.load(distilled.teacher / PROMPTS_FILE).tensors
    assert torch.equal(teacher.method.vision_prompts.tokens, written["vision_prompts.tokens"])
    assert torch.equal(student.head.module.class_vectors, student.vectors.vectors)
    checkpoint = torch.load(distilled.folder / "epoch=2.ckpt", weights_only=True)
    trained = {f"encoder.{name}" for name in student.encoder.state_dict()}
    assert trained == set(checkpoint["state_dict"])
    assert not [name for name in trained if "tower" in name]
    assert checkpoint[ORIGIN_KEY]["teacher"] == student.vectors.teacher


def test_a_run_is_tested_without_its_teacher(distilled, tmp_path, monkeypatch):
    copy = distilled.folder / CLASS_VECTORS_FILE
    assert copy.read_bytes() == (distilled.teacher / CLASS_VECTORS_FILE).read_bytes()
    monkeypatch.setattr(TunedPrompts, "load", None)
    student = make_student(tmp_path / "nowhere", class_vectors=str(copy))
    options = {"ckpt_path": distilled.folder / "epoch=2.ckpt"}
    assert world.evaluate(student, tmp_path, **options) == distilled.metrics
    options |= {"datamodule": world.TinyDomain(num_base=3), "verbose": False, "weights_only": True}
    validated = world.quiet_trainer(tmp_path, limit_val_batches=1.0).validate(student, **options)[0]
    # both splits of this domain hold the same images
    assert validated == {k.replace("test/", "val/"): v for k, v in distilled.metrics.items()}
    assert student.teacher.module.tower is None
    with world.refused(ConfigError, "image tower is not loaded"):
        student.teacher.module.features(IMAGES)


def test_prompts_may_start_at_the_mean_tokens_of_the_domain(tmp_path):
    starts = {}
    for kind in ("normal", "mean_token"):
        student = new_student(tmp_path, prompt_init=kind)
        keep = lambda s: s.encoder.prompts.tokens.detach().clone()  # noqa: E731
        starts[kind] = world.fit(student, tmp_path, limit_train_batches=1, start=keep).started
    assert starts["normal"].std() < 0.03
    prompts = student.encoder.prompts
    prompts.tokens.data.copy_(starts["normal"])
    prompts.init_at_mean_tokens(student.encoder.tower.module, world.TinyDomain().unlabeled)
    assert relative_error(starts["mean_token"], prompts.tokens) < 1e-6


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-true"])
def test_what_is_trained_is_float32_under_every_precision(precision, tmp_path, plain_of):
    student, seen = first_batch(tmp_path, plain_of, precision=precision)
    state = student.state_dict().items()
    kept = [tensor for name, tensor in state if not name.endswith("num_batches_tracked")]
    momenta = [s["momentum_buffer"] for s in student.trainer.optimizers[0].state.values()]
    assert {t.dtype for t in (*kept, *seen.gradients.values(), *momenta)} == {torch.float32}
    assert torch.equal(student.head.module.class_vectors, world.frozen_vectors().vectors)
    # the setting is for the arithmetic of the frozen towers; under bf16-mixed, what ships is float32 again
    half = torch.float16 if precision == "16-true" else torch.bfloat16
    shipped = torch.float32 if precision == "bf16-mixed" else half
    assert student.teacher.module.tower.visual.proj.dtype == half
    assert student.encoder.tower.module.visual.proj.dtype == shipped
    assert seen.losses == [pytest.approx(seen.started.loss(IMAGES).item(), rel=0.2)]


def test_a_student_of_pooled_features_ships_without_the_projection(distilled, tmp_path, images):
    student = make_student(distilled.teacher, projector_input="pooled")
    world.fit(student, tmp_path, 1)
    read = Classifier.load(tmp_path / "classifier")
    visual, weights = read.encoder.tower.module.visual, world.weights("test-student")
    assert visual.proj is None
    assert read.encoder.projector.layers[0].in_features == len(weights["visual.proj"])
    world.assert_untouched(visual, "test-student", "visual.")
    assert relative_error(read(images), student.eval().class_logits(images)) < 1e-6


def refuse(student, folder, kind, match, domain=None, **options):
    """Expect one sentence before the first step."""
    with world.refused(kind, match):
        world.fit(student, folder, callbacks=[world.NoStep()], domain=domain, **options)


def test_a_teacher_without_class_vectors_or_prompts_is_refused(tmp_path):
    with world.refused(ArtifactError, r"nowhere.class_vectors\.safetensors does not exist"):
        make_student(tmp_path / "nowhere")
    student = new_student(tmp_path)
    (tmp_path / PROMPTS_FILE).unlink()
    refuse(student, tmp_path, ArtifactError, r"prompts\.safetensors does not exist")


def test_class_vectors_of_other_names_or_another_teacher_are_refused(distilled, tmp_path):
    student, match = make_student(distilled.teacher), "for other class names"
    domain = world.TinyDomain(names=world.NAMES[:4])
    refuse(student, tmp_path, ArtifactError, match, domain)
    with world.refused(ArtifactError, match):
        world.evaluate(student, tmp_path, domain)
    world.write_teacher(tmp_path, seed=1)
    student = make_student(distilled.teacher, class_vectors=str(tmp_path / CLASS_VECTORS_FILE))
    match = f"another teacher than the one in {distilled.teacher}"
    refuse(student, tmp_path, ArtifactError, match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kd_weight": 0.0}, r"loss\.weight is 0\.0"),
        ({"temperature": -1.0}, r"loss\.temperature -1\.0"),
        ({"target": "kdpl.losses.feature_l1"}, "no target 'kdpl.losses.feature_l1'"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, match, distilled):
    with world.refused(ConfigError, match):
        make_student(distilled.teacher, **options)


def test_checkpoints_of_others_are_refused(distilled, tmp_path):
    file = distilled.folder / "epoch=2.ckpt"
    student = make_student(distilled.teacher)
    student.clip = replace(student.clip, fingerprint="0" * 32)
    refuse(student, tmp_path, ArtifactError, r"clip is \w+ there and 0+ here", ckpt_path=file)
    world.write_teacher(tmp_path, seed=1)
    match = r"teacher is \w+ there and \w+ here"
    refuse(make_student(tmp_path), tmp_path, ArtifactError, match, ckpt_path=file)
    content = torch.load(file, weights_only=True)
    del content[ORIGIN_KEY]
    torch.save(content, tmp_path / "other.ckpt")
    student = make_student(distilled.teacher)
    refuse(student, tmp_path, ArtifactError, "does not say", ckpt_path=tmp_path / "other.ckpt")


def test_targets_that_are_prepared_in_a_fit_are_not_there_before(teacher_folder):
    student = make_student(teacher_folder, target="refined")
    batch = UnlabeledBatch(IMAGES, torch.arange(len(IMAGES)))
    with world.refused(ConfigError, "the targets are not there: run a fit of the student"):
        student.target_logits(batch)
