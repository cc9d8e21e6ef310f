"""The paper's ablations as settings of the student, each against the plain implementation."""

from dataclasses import replace

import numpy as np
import plain
import pytest
import torch
import world
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from PIL import Image
from plain import normalized, relative_error
from test_student import PlainStudent, first_batch, make_student

from kdpl import Classifier
from kdpl.class_vectors import ClassVectors
from kdpl.clip.loading import ClipConfig
from kdpl.errors import ArtifactError, ConfigError, DataError
from kdpl.prompts import PromptConfig
from kdpl.student import StudentDistillation

IMAGES = world.TinyDomain().unlabeled[:6]
TEXTS = [f"a photo of a {name.replace('_', ' ')}." for name in world.NAMES]


@pytest.mark.parametrize("distill", ["l1", "mse"])
def test_feature_distillation_compares_normalised_features_in_the_teachers_embedding(distill, tmp_path, plain_of):
    vectors, prompts = world.write_teacher(tmp_path)
    student = make_student(tmp_path, distill=distill, kd_weight=50)
    step = first_batch(student, lambda s: PlainStudent(s, vectors, prompts, plain_of), tmp_path)
    p = step.plain
    features = normalized(p.projector(p.clip.image_features(IMAGES, p.prompts), training=True))
    difference = features - normalized(p.teacher_clip.image_features(IMAGES, p.teacher_prompts))
    total = (difference.abs() if distill == "l1" else difference**2).sum()
    loss = 50 * total / difference.numel()
    assert step.loss == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    assert relative_error(step.gradients["encoder.prompts.tokens"], p.prompts.grad) < 1e-5
    for name in ("layers.0.weight", "layers.3.weight", "layers.3.bias"):
        assert relative_error(step.gradients[f"encoder.projector.{name}"], p.leaves[name].grad) < 1e-5, name


class OwnText:
    """A student without projector that answers by its own CLIP's text features."""

    def __init__(self, student, vectors, prompts, plain_of):
        self.clip, self.teacher = plain_of("test-student"), plain_of("test-teacher-quickgelu")
        self.prompts = student.encoder.prompts.tokens.detach().double().requires_grad_()
        self.text = normalized(self.clip.text_features(TEXTS))
        self.teacher_prompts, self.vectors = prompts.double(), vectors.vectors.double()

    def logits(self, images):
        return 17 * normalized(self.clip.image_features(images, self.prompts)) @ self.text.T

    def teacher_logits(self, images):
        return 30 * normalized(self.teacher.image_features(images, self.teacher_prompts)) @ self.vectors.T


def test_without_shared_class_vectors_the_students_own_text_features_answer(tmp_path, plain_of):
    vectors, prompts = world.write_teacher(tmp_path)
    student = make_student(tmp_path, text_features="student")
    step = first_batch(student, lambda s: OwnText(s, vectors, prompts, plain_of), tmp_path)
    loss = plain.distillation(step.plain.logits(IMAGES), step.plain.teacher_logits(IMAGES), 1000, 1)
    assert step.loss == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    assert list(step.gradients) == ["encoder.prompts.tokens"], "there is no projector"
    assert relative_error(step.gradients["encoder.prompts.tokens"], step.plain.prompts.grad) < 1e-5
    read = Classifier.load(tmp_path / "classifier")
    assert read.encoder.projector is None
    assert read.class_names == world.NAMES
    student.eval()
    assert torch.equal(read(IMAGES), student.class_logits(IMAGES))
    assert relative_error(read.vectors.vectors, step.plain.text) < 1e-5


def test_fine_tuning_trains_the_whole_tower(tmp_path, plain_of):
    vectors, prompts = world.write_teacher(tmp_path)

    def start(student):
        p = PlainStudent(student, vectors, prompts, plain_of)
        p.clip = plain.PlainClip(
            {f"visual.{k}": v for k, v in student.encoder.tower.module.visual.state_dict().items()}
            | {"logit_scale": torch.tensor(17.0).log()},
            world.CONFIGS["test-student"],
        )
        for tensor in p.clip.state.values():
            tensor.requires_grad_()
        return p

    student = make_student(tmp_path, fine_tune=True)
    step = first_batch(student, start, tmp_path)
    loss = step.plain.loss(IMAGES)
    assert step.loss == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    towers = {k: g for k, g in step.gradients.items() if k.startswith("encoder.tower.")}
    expected = {k: t.grad for k, t in step.plain.clip.state.items() if k.startswith("visual.")}
    assert {k.removeprefix("encoder.tower.module.") for k in towers} == expected.keys()
    largest = max(g.abs().max().item() for g in expected.values())
    for name, gradient in expected.items():
        mine = towers[f"encoder.tower.module.{name}"].double()
        # keys' biases move no attention: their gradient is rounding, so the scale is that of all
        assert (mine - gradient).abs().max() < 3e-5 * max(gradient.abs().max().item(), 1e-2 * largest), name


def test_a_fine_tuned_tower_is_in_the_checkpoint_and_in_the_classifier(tmp_path):
    world.write_teacher(tmp_path)
    saved = ModelCheckpoint(tmp_path, filename="tuned")
    student = make_student(tmp_path, fine_tune=True, vision_prompts=PromptConfig(depth=0))
    trainer = world.quiet_trainer(tmp_path, callbacks=[saved], enable_checkpointing=True)
    trainer.fit(student, datamodule=world.TinyDomain())
    tower = student.encoder.tower.module.visual.state_dict()
    moved = [k for k, v in tower.items() if not torch.equal(v, world.weights("test-student")[f"visual.{k}"])]
    assert len(moved) == len(tower)
    read = Classifier.load(tmp_path / "classifier")
    student.eval()
    # a frozen tower's attention may take a faster way than one that is trained
    assert relative_error(read(IMAGES), student.class_logits(IMAGES)) < 1e-6
    other = make_student(tmp_path, fine_tune=True, vision_prompts=PromptConfig(depth=0))
    options = {"datamodule": world.TinyDomain(), "ckpt_path": tmp_path / "tuned.ckpt", "weights_only": True}
    world.quiet_trainer(tmp_path).test(other, **options, verbose=False)
    assert torch.equal(other.eval().class_logits(IMAGES), student.class_logits(IMAGES))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_fine_tuned_tower_stays_in_float32(precision, tmp_path):
    world.write_teacher(tmp_path)
    student = make_student(tmp_path, fine_tune=True)
    world.quiet_trainer(tmp_path, precision=precision, limit_train_batches=0).fit(
        student, datamodule=world.TinyDomain()
    )
    for name, tensor in student.encoder.tower.module.visual.state_dict().items():
        assert torch.equal(tensor, world.weights("test-student")[f"visual.{name}"]), name


@pytest.mark.parametrize(("model", "size"), [("test-resnet", 32), ("test-timm", 48)])
def test_a_student_without_tokens_learns_through_its_projector_alone(model, size, tmp_path):
    world.write_teacher(tmp_path)
    student = make_student(tmp_path, model=model, vision_prompts=PromptConfig(depth=0))
    before = {k: v.clone() for k, v in student.image_clip.image_tower.visual.state_dict().items()}

    class Larger(world.TinyDomain):
        def _loader(self, images, *rest):
            factor = size // 16
            return super()._loader(
                images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)[..., ::2, ::2], *rest
            )

    trainer = world.quiet_trainer(tmp_path)
    trainer.fit(student, datamodule=Larger())
    names = {name for name, p in student.named_parameters() if p.requires_grad}
    assert names == {f"encoder.projector.layers.{n}.{k}" for n in (0, 1, 3) for k in ("weight", "bias")}
    after = student.image_clip.image_tower.visual.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in after.items()), "statistics of the tower's batch norms included"
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    student.eval()
    assert torch.equal(Classifier.load(tmp_path / "classifier")(images), student.class_logits(images))
    with pytest.raises(ConfigError, match=r"no tokens that prompts could stand beside: set vision_prompts.depth to 0"):
        world.quiet_trainer(tmp_path).fit(make_student(tmp_path, model=model), datamodule=Larger())


def test_a_teacher_of_another_image_size_sees_the_same_view_resized(tmp_path, plain_of):
    _, prompts = world.write_teacher(tmp_path)
    student = make_student(tmp_path, model="test-timm", vision_prompts=PromptConfig(depth=0))
    world.quiet_trainer(tmp_path, limit_train_batches=0).fit(student, datamodule=world.TinyDomain())
    draw = torch.Generator().manual_seed(3)
    smooth = torch.rand(2, 3, 6, 6, generator=draw).repeat_interleave(8, 2).repeat_interleave(8, 3)
    view = (smooth * 255).to(torch.uint8)
    # Pillow's bicubic in floating point, channel by channel
    small = torch.stack(
        [
            torch.stack(
                [
                    torch.from_numpy(np.asarray(Image.fromarray(c.float().numpy()).resize((32, 32), Image.BICUBIC)))
                    for c in image
                ]
            )
            for image in view
        ]
    ).clamp(0, 255)
    expected = normalized(plain_of("test-teacher-quickgelu").image_features(small, prompts.double()))
    assert relative_error(student.teacher.module.features(view), expected) < 1e-4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"text_features": "student", "distill": "l1"}, "distill l1 compares features in the teacher's embedding"),
        ({"text_features": "student", "vision_prompts": PromptConfig(depth=0)}, "no projector, and without visual"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, match, tmp_path):
    with pytest.raises(ConfigError, match=match) as error:
        make_student(tmp_path, **options)
    assert world.one_sentence(error)


class TestOtherClassVectors:
    """A finished student is tested against further class vectors of its teacher."""

    @pytest.fixture
    def run(self, tmp_path):
        vectors, _ = world.write_teacher(tmp_path)
        saved = ModelCheckpoint(tmp_path, filename="student")
        student = make_student(tmp_path)
        trainer = world.quiet_trainer(tmp_path, callbacks=[saved], enable_checkpointing=True)
        trainer.fit(student, datamodule=world.TinyDomain(num_base=3))
        return student.eval(), vectors

    def other(self, tmp_path, vectors, names, **changes):
        rows = torch.nn.functional.normalize(torch.randn(len(names), vectors.vectors.shape[1]), dim=-1)
        other = replace(vectors, vectors=rows, class_names=names, num_base=None, **changes)
        other.save(tmp_path / "other.safetensors")
        return other

    def test_in_the_place_of_those_that_it_was_distilled_against(self, run, tmp_path):
        student, vectors = run
        other = self.other(tmp_path, vectors, ("gull", "tern", "auk"))
        tested = make_student(tmp_path, class_vectors=str(tmp_path / "other.safetensors"))
        domain = world.TinyDomain(names=("gull", "tern", "auk"))
        world.quiet_trainer(tmp_path).test(
            tested, datamodule=domain, ckpt_path=tmp_path / "student.ckpt", weights_only=True, verbose=False
        )
        expected = 17 * student.encoder(IMAGES) @ other.vectors.T
        assert relative_error(tested.eval().class_logits(IMAGES), expected) < 1e-6

    def test_of_another_teacher_they_are_refused(self, run, tmp_path):
        _, vectors = run
        self.other(tmp_path, vectors, ("gull", "tern"), teacher="0" * 32)
        tested = make_student(tmp_path, class_vectors=str(tmp_path / "other.safetensors"))
        domain = world.TinyDomain(names=("gull", "tern"))
        with pytest.raises(ArtifactError, match="frozen by another teacher than the one that the checkpoint") as error:
            world.quiet_trainer(tmp_path).test(
                tested, datamodule=domain, ckpt_path=tmp_path / "student.ckpt", weights_only=True
            )
        assert world.one_sentence(error)


class Epochs(Callback):
    """Keeps the weights after each epoch, as training left them."""

    def __init__(self):
        self.weights = []

    def on_train_epoch_end(self, _, pl_module):
        self.weights.append({k: v.clone() for k, v in pl_module.state_dict().items()})


class TestChoice:
    """The published choice of the epoch."""

    def fit(self, folder, accuracies, monkeypatch, epochs=4, ckpt_path=None, start=0, **options):
        """Fit with these test accuracies, epoch by epoch; gives the student and the epochs' weights."""
        given = iter(accuracies[start:])
        monkeypatch.setattr("kdpl.callbacks.choice._base_accuracy", lambda *_: next(given))
        world.write_teacher(folder / "teacher")
        student = make_student(folder / "teacher", choice="best_on_base_test", **options)
        kept, saved = Epochs(), ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        trainer = world.quiet_trainer(folder, epochs, callbacks=[kept, saved], enable_checkpointing=True)
        domain = world.TinyDomain(num_base=3)
        domain.test_records = ["one"]
        trainer.fit(student, datamodule=domain, ckpt_path=ckpt_path, weights_only=True)
        return student, kept.weights

    @pytest.mark.parametrize(
        ("accuracies", "best"), [([0.2, 0.6, 0.5, 0.6], 1), ([0.1, 0.2, 0.3, 0.4], 3), ([0.0, 0.0, 0.0, 0.0], 0)]
    )
    def test_the_first_epoch_of_the_best_accuracy_is_the_result(self, accuracies, best, tmp_path, monkeypatch):
        student, epochs = self.fit(tmp_path, accuracies, monkeypatch)
        assert all(torch.equal(v, epochs[best][k]) for k, v in student.state_dict().items())
        checkpoint = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)
        world.assert_plain_values(checkpoint)
        assert all(torch.equal(v, epochs[best][k]) for k, v in checkpoint["state_dict"].items())
        read = Classifier.load(tmp_path / "classifier")
        assert torch.equal(read(IMAGES), student.eval().class_logits(IMAGES))

    def test_a_resumed_run_chooses_the_same(self, tmp_path, monkeypatch):
        accuracies = [0.2, 0.6, 0.5, 0.3]
        _, epochs = self.fit(tmp_path, accuracies, monkeypatch)
        resumed, _ = self.fit(tmp_path, accuracies, monkeypatch, ckpt_path=tmp_path / "epoch=2.ckpt", start=3)
        assert all(torch.equal(v, epochs[1][k]) for k, v in resumed.state_dict().items())

    def test_it_says_that_it_looks_at_the_test_set(self, tmp_path, monkeypatch, caplog):
        with pytest.warns(UserWarning, match="looks at the TEST set"), caplog.at_level("INFO"):
            self.fit(tmp_path, [0.1, 0.7, 0.2, 0.3], monkeypatch)
        assert "epoch 1 is the result, chosen by its accuracy on the base classes' TEST images (70.00 %)" in caplog.text

    @pytest.mark.parametrize(("num_base", "metric"), [(3, "test/base_acc"), (None, "test/acc")])
    def test_the_accuracy_is_that_of_a_test_on_the_base_classes(self, num_base, metric, tmp_path):
        world.write_teacher(tmp_path, num_base=num_base)
        student = make_student(tmp_path, choice="best_on_base_test")
        domain = world.TinyDomain(num_base=num_base)
        domain.test_records = ["one"]
        trainer = world.quiet_trainer(tmp_path)
        trainer.fit(student, datamodule=domain)
        chosen = trainer.callback_metrics["choice/test_base_acc"].item()
        tested = world.quiet_trainer(tmp_path).test(student, datamodule=domain, verbose=False)[0]
        assert chosen == pytest.approx(tested[metric])
        assert 0 < chosen <= 1

    def test_without_test_images_it_is_refused(self, tmp_path):
        world.write_teacher(tmp_path)
        domain = world.TinyDomain(num_base=3)
        domain.test_records = []
        with pytest.raises(DataError, match="choice: best_on_base_test needs test images") as error:
            world.quiet_trainer(tmp_path).fit(make_student(tmp_path, choice="best_on_base_test"), datamodule=domain)
        assert world.one_sentence(error)


@pytest.mark.parametrize("compiles", [True, False])
def test_the_towers_of_both_are_compiled_if_asked_for(compiles, tmp_path, monkeypatch):
    world.write_teacher(tmp_path)
    widths = []
    monkeypatch.setattr("kdpl.clip.image.PromptableImageTower.compile_parts", lambda tower: widths.append(tower.width))
    student = make_student(tmp_path, compile=compiles)
    world.quiet_trainer(tmp_path, limit_train_batches=1).fit(student, datamodule=world.TinyDomain())
    assert widths == ([32, 48] if compiles else []), "the student's and the teacher's"


def test_the_last_epoch_is_the_default(tmp_path):
    vectors, _ = world.write_teacher(tmp_path)
    assert make_student(tmp_path).choice == "last"
    assert isinstance(vectors, ClassVectors)
    assert not [c for c in make_student(tmp_path).configure_callbacks() if type(c).__name__ == "BestOnBaseTest"]


def test_the_text_tower_of_the_student_is_not_even_loaded_where_it_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("kdpl.student.load_clip", lambda _: pytest.fail("the whole CLIP was loaded"))
    StudentDistillation(ClipConfig("test-student", world.TAG), str(tmp_path))
