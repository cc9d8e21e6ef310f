"""Several teachers, against a plain loop over images, teachers and classes."""

import json
import math
from dataclasses import replace

import numpy as np
import plain
import pytest
import torch
import world
from plain import PlainProjector, normalized, relative_error
from scipy.optimize import minimize
from test_student_cache import Distilled

from kdpl.class_vectors import FrozenTeacher
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.readers.digits import read_digits
from kdpl.errors import ArtifactError, ConfigError, DataError
from kdpl.prompts.tuned import TunedPrompts
from kdpl.refinement.target import PoolTargets
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, POOL_TARGETS_FILE
from kdpl.targets.mixture import TeacherMixture, likeliest_weights

MODELS = {"first": "test-teacher-quickgelu", "second": "test-large"}
WIDTHS = {"first": 24, "second": 28}
# not those of the CLIPs, with which each prediction is nearly one-hot
SCALES = {"first": 3, "second": 2}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folders of two teachers for the digits, of CLIPs of other widths and image sizes: vectors and prompts."""
    root = tmp_path_factory.mktemp("teachers")
    digits = {"class_names": world.DIGITS, "num_base": None}
    scales = {name: {"logit_scale": float(scale)} for name, scale in SCALES.items()}
    return root, {name: world.write_teacher(root / name, MODELS[name], **digits, **scales[name]) for name in MODELS}


def settings(root, **options):
    return {"more_teachers": [str(root / "second")], **options}


def plain_mixture(rows, vectors, mixture, weights=None):
    """Probabilities [B, C] of the mixture, by loops; ``rows`` are each teacher's features."""
    mixed = np.zeros((len(rows["first"]), len(world.DIGITS)))
    for image, row in enumerate(mixed):
        each = {}
        for name in MODELS:
            powers = [math.exp(SCALES[name] * float(rows[name][image] @ vector)) for vector in vectors[name]]
            each[name] = [power / sum(powers) for power in powers]
        if mixture == "confidence":
            entropy = {name: -sum(p * math.log(p) for p in probabilities) for name, probabilities in each.items()}
            total = sum(math.exp(-h) for h in entropy.values())
            weights = {name: math.exp(-h) / total for name, h in entropy.items()}
        for name, probabilities in each.items():
            row += (weights or {"first": 0.5, "second": 0.5})[name] * np.array(probabilities)
    return torch.from_numpy(mixed)


@pytest.mark.parametrize("mixture", ["mean", "confidence", "validation"])
def test_the_mixture_is_the_weighted_mean_of_the_predictions(mixture, written):
    root, teachers = written
    vectors = {name: made[0].vectors.double().numpy() for name, made in teachers.items()}
    mixed = TeacherMixture(FrozenTeacher(root / "first", teachers["first"][0]), [str(root / "second")], mixture)
    mixed.open()
    rows = {name: torch.randn(7, width, generator=torch.Generator().manual_seed(3)) for name, width in WIDTHS.items()}
    # so that some predictions are sharp and others are not
    rows = {name: normalized(each.double()) * torch.linspace(0.1, 1, 7)[:, None] for name, each in rows.items()}
    weights = {"first": 0.3, "second": 0.7} if mixture == "validation" else None
    if weights:
        mixed.weights = list(weights.values())
    probabilities = mixed.logits(torch.cat(list(rows.values()), dim=1).float()).exp()
    expected = plain_mixture({name: each.numpy() for name, each in rows.items()}, vectors, mixture, weights)
    assert relative_error(probabilities, expected) < 1e-5
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(7))
    mixed.weights = [1.0, 0.0]
    if mixture != "confidence":
        alone = FrozenTeacher(root / "first", teachers["first"][0]).logits(rows["first"].float()).softmax(dim=1)
        assert torch.allclose(mixed.logits(torch.cat(list(rows.values()), dim=1).float()).exp(), alone, atol=1e-6)


@pytest.mark.parametrize("mixture", ["mean", "confidence"])
def test_a_student_learns_from_all_teachers_each_with_its_own_clip_and_image_size(mixture, written, tmp_path, plain_of):
    root, teachers = written
    seen = Distilled(root / "first", tmp_path, trainer={"limit_train_batches": 1}, **settings(root, mixture=mixture))
    images, indices, for_second = seen.batches[0]
    assert (images.shape[-1], for_second.shape[-1], len(indices)) == (32, 48, 50)
    vectors, rows = {}, {}
    for (name, model), views in zip(MODELS.items(), (images, for_second), strict=True):
        class_vectors, prompts = teachers[name]
        vectors[name] = class_vectors.vectors.double().numpy()
        rows[name] = normalized(plain_of(model).image_features(views, prompts.double())).numpy()
    target = plain_mixture(rows, vectors, mixture).log()
    # the student before its first step
    start = world.make_student(root / "first", kd_weight=20, **settings(root))
    own = normalized(
        PlainProjector(start.encoder.projector.state_dict())(
            plain_of("test-student").image_features(images, start.encoder.prompts.tokens.detach().double()), True
        )
    )
    logits = 17 * own @ torch.from_numpy(vectors["first"]).T
    assert seen.losses[0] == pytest.approx(plain.distillation(logits, target, 20, 1).item(), rel=1e-5)


def log_loss(weights, likelihoods):
    return -np.log(weights @ likelihoods).mean()


@pytest.mark.parametrize("teachers", [2, 3])
def test_the_weights_of_validation_have_the_least_log_loss(teachers):
    likelihoods = (
        np.random.default_rng(teachers).uniform(0.01, 1, (teachers, 200)) ** np.arange(1, teachers + 1)[:, None]
    )
    found = np.array(likeliest_weights(torch.from_numpy(likelihoods)))
    start = np.full(teachers, 1 / teachers)
    sums_to_one = {"type": "eq", "fun": lambda w: w.sum() - 1}
    best = minimize(log_loss, start, (likelihoods,), bounds=[(0, 1)] * teachers, constraints=sums_to_one, tol=1e-12)
    assert found == pytest.approx(best.x, abs=1e-4)
    assert found.sum() == pytest.approx(1)
    assert log_loss(found, likelihoods) < log_loss(start, likelihoods)


def test_a_teacher_that_is_always_right_has_all_the_weight():
    assert likeliest_weights(torch.tensor([[0.9, 0.9], [0.1, 0.2]])) == pytest.approx([1, 0], abs=1e-6)


class TestValidation:
    def distil(self, written, folder, **options):
        return Distilled(written[0] / "first", folder, **settings(written[0], mixture="validation"), **options)

    def test_the_weights_are_those_of_the_validation_images_and_a_resumed_run_keeps_them(
        self, written, tmp_path, monkeypatch, capsys, plain_of
    ):
        whole = self.distil(written, tmp_path, trainer={"save": True})
        file = json.loads((tmp_path / "teacher_weights.json").read_text())
        data, likelihoods, accuracies = world.digits(50), [], []
        for name, (class_vectors, prompts) in written[1].items():
            batches = list(data.evaluation_dataloader_for("val", class_vectors.preprocessing.resizing))
            images, labels, _ = (torch.cat(parts) for parts in zip(*batches, strict=True))
            rows = normalized(plain_of(MODELS[name]).image_features(images, prompts.double()))
            probabilities = plain.softmax(SCALES[name] * rows @ class_vectors.vectors.double().T)
            likelihoods.append(probabilities[range(len(labels)), labels].numpy())
            accuracies.append((probabilities.argmax(dim=1) == labels).double().mean().item())
        grid = np.linspace(0, 1, 2001)
        best = grid[np.argmin([log_loss(np.array([w, 1 - w]), np.stack(likelihoods)) for w in grid])]
        weights = [row["weight"] for row in file["teachers"]]
        assert weights == pytest.approx([best, 1 - best], abs=1e-3)
        assert [row["val_acc"] for row in file["teachers"]] == pytest.approx(accuracies)
        assert [row["run"] for row in file["teachers"]] == [str(written[0] / name) for name in MODELS]
        assert file["log_loss"] == pytest.approx(log_loss(np.array(weights), np.stack(likelihoods)), rel=1e-4)
        assert file["images"] == 198
        said = capsys.readouterr().err
        assert f"teacher {written[0] / 'second'}: weight {weights[1]:.3f} (val_acc {100 * accuracies[1]:.1f} %" in said
        assert whole.student.teacher.module.weights == weights

        monkeypatch.setattr("kdpl.callbacks.teacher_weights._validate", None)
        resumed = self.distil(written, tmp_path, ckpt_path=tmp_path / "epoch=0.ckpt")
        assert resumed.losses == whole.losses[5:]

    def test_labels_of_novel_classes_are_not_looked_at(self, written, tmp_path):
        data = {"protocol": "base_to_novel"}
        self.distil(written, tmp_path, data=data, trainer={"limit_train_batches": 1})
        base = [record for record in world.digits(50).splits.val if record.label < 5]
        assert json.loads((tmp_path / "teacher_weights.json").read_text())["images"] == len(base) < 198

    @pytest.mark.parametrize("no_labels", [True, False])
    def test_without_validation_images_it_is_refused(self, no_labels, written, tmp_path, monkeypatch):
        if not no_labels:
            monkeypatch.setattr(DomainDataModule, "splits", replace(read_digits(), val=()))
        with world.refused(DataError, "needs labelled validation images, .* none: set mixture to mean or confidence"):
            self.distil(written, tmp_path, data={"shots": 0} if no_labels else {})


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"temperature": 2.0}, "their mixture is defined at temperature 1, not 2.0: set distill: kl and"),
            ({"distill": "mse"}, "several teachers have no features in common for distill mse"),
            ({"more_teachers": [], "mixture": "confidence"}, "there is one: name more_teachers"),
        ],
    )
    def test_settings_that_do_not_fit_each_other(self, options, match, written):
        with world.refused(ConfigError, match):
            world.make_student(written[0] / "first", **settings(written[0], **options))

    def test_teachers_of_other_class_names(self, written, tmp_path):
        root, names = written[0], (*world.DIGITS[:8], "nine", "eight")
        world.write_teacher(tmp_path / "other", "test-large", class_names=names, num_base=None)
        match = f"class vectors of {tmp_path}/other .*class 8 is 'nine' there and 'eight' in {root}/first"
        with world.refused(ArtifactError, match):
            Distilled(root / "first", tmp_path, more_teachers=[str(tmp_path / "other")])

    def test_a_teacher_that_is_not_there(self, written, tmp_path):
        with world.refused(ArtifactError, r"nowhere.class_vectors\.safetensors does not exist"):
            Distilled(written[0] / "first", tmp_path, more_teachers=[str(tmp_path / "nowhere")])

    def test_a_checkpoint_of_other_teachers(self, written, tmp_path):
        root, resume = written[0], {"ckpt_path": tmp_path / "epoch=0.ckpt"}
        Distilled(root / "first", tmp_path, trainer={"save": True}, **settings(root))
        for others in ([], [str(root / "first")]):
            with world.refused(ArtifactError, "distilled from a different teacher than the one in the settings"):
                Distilled(root / "first", tmp_path, more_teachers=others, **resume)


def test_a_student_of_several_teachers_is_tested_without_any(written, tmp_path, monkeypatch):
    root = written[0]
    Distilled(root / "first", tmp_path, trainer={"save": True, "limit_train_batches": 1}, **settings(root))
    copy = tmp_path / CLASS_VECTORS_FILE
    monkeypatch.setattr(TunedPrompts, "load", None)
    nowhere = {"class_vectors": str(copy), "more_teachers": [str(tmp_path / "gone")], "mixture": "validation"}
    student = world.make_student(tmp_path / "nowhere", kd_weight=20, **nowhere)
    metrics = world.evaluate(student, tmp_path, world.digits(50), tmp_path / "epoch=1.ckpt")
    assert 0 < metrics["test/acc"] < 1


def test_targets_are_refined_from_the_predictions_of_all_teachers(written, tmp_path, plain_of):
    root, teachers = written
    # every view of an image is then the same, and so is the mean of its features
    data = {"augmentation": "none", "unlabeled_share": 0.1}
    options = {"trainer": {"limit_train_batches": 1}, "data": data, "target": "refined"}
    Distilled(root / "first", tmp_path, **options, **settings(root, mixture="confidence"))
    made = PoolTargets.load(tmp_path / POOL_TARGETS_FILE)
    assert made.teacher == " confidence ".join(teachers[name][0].teacher for name in MODELS)
    images, rows, vectors = world.digits(50, **data), {}, {}
    for name, model in MODELS.items():
        pool = images.unlabeled_images(teachers[name][0].preprocessing.resizing)
        views = torch.stack([pool[int(index), 0][0] for index in images.unlabeled_indices])
        vectors[name] = teachers[name][0].vectors.double().numpy()
        rows[name] = normalized(plain_of(model).image_features(views, teachers[name][1].double())).numpy()
    predicted = plain_mixture(rows, vectors, "confidence").argmax(dim=1)
    assert list(made.before) == torch.bincount(predicted, minlength=10).tolist()


class TestCaches:
    def test_distillation_from_caches_is_distillation_with_the_teachers(self, written, tmp_path, monkeypatch):
        root, cache = written[0], tmp_path / "cache"
        plain_run = Distilled(root / "first", tmp_path, **settings(root, mixture="confidence"))
        Distilled(root / "first", tmp_path, cache, fill=True, **settings(root, mixture="confidence"))
        # complete caches need no teacher at all
        monkeypatch.setattr(TunedPrompts, "load", None)
        cached = Distilled(root / "first", tmp_path, cache, **settings(root, mixture="confidence"))
        assert cached.losses == pytest.approx(plain_run.losses, rel=2e-3)
        assert cached.batches[0].feature.shape == (50, 24 + 28)
        # and that of the first serves a student of this teacher alone
        alone = Distilled(root / "first", tmp_path, cache)
        assert torch.equal(alone.batches[0].feature, cached.batches[0].feature[:, :24])

    def test_a_cache_of_a_further_teacher_gets_the_views_of_the_first(self, written, tmp_path):
        root, cache = written[0], tmp_path / "cache"
        Distilled(root / "first", tmp_path, cache, fill=True, data={"seed": 5})
        Distilled(root / "first", tmp_path, cache, fill=True, **settings(root))
        manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("cache", "cache.2")]
        assert [(m["view_seed"], m["width"], m["resizing"]["image_size"]) for m in manifests] == [
            (5, 24, 32),
            (5, 28, 48),
        ]

    def test_caches_of_different_views_are_refused(self, written, tmp_path):
        root, cache = written[0], tmp_path / "cache"
        Distilled(root / "first", tmp_path, cache, fill=True)
        Distilled(root / "second", tmp_path, tmp_path / "cache.2", fill=True, data={"seed": 5})
        said = "2 of each image with seed 1, but 2 of each image with seed 5"
        for fill in (False, True):
            with world.refused(DataError, rf"cache and {cache}\.2 have different views \({said}\): remove one"):
                Distilled(root / "first", tmp_path, cache, fill=fill, **settings(root))

    def test_a_missing_cache_of_a_further_teacher_is_named(self, written, tmp_path):
        root, cache = written[0], tmp_path / "cache"
        Distilled(root / "first", tmp_path, cache, fill=True)
        with world.refused(DataError, rf"the teacher cache {cache}\.2 does not exist: fill it"):
            Distilled(root / "first", tmp_path, cache, **settings(root))


@pytest.mark.slow
def test_two_processes_choose_the_weights_and_fill_the_caches_that_one_does(written, tmp_path):
    two = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    found = []
    for folder, options in ((tmp_path / "one", {}), (tmp_path / "two", two)):
        run = {"trainer": {"limit_train_batches": 1, **options}, "fill": True}
        cache = folder / "cache"
        Distilled(written[0] / "first", folder, cache, **run, **settings(written[0], mixture="validation"))
        features = [np.load(path / "shard-00000.npy") for path in (cache, folder / "cache.2")]
        found.append((json.loads((folder / "teacher_weights.json").read_text()), features))
    (one, by_one), (several, by_several) = found
    assert [row["weight"] for row in several["teachers"]] == pytest.approx(
        [row["weight"] for row in one["teachers"]], abs=1e-5
    )
    assert [row["val_acc"] for row in several["teachers"]] == [row["val_acc"] for row in one["teachers"]]
    for a, b in zip(by_one, by_several, strict=True):
        assert np.allclose(a, b, rtol=0, atol=3e-4)
