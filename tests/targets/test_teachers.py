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
from world import Distilled

from kdpl.data.readers.digits import Digits, read_digits
from kdpl.errors import ArtifactError, ConfigError, DataError
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE
from kdpl.targets.refinement import pool_targets
from kdpl.targets.refinement.target import Refined
from kdpl.targets.teachers import Teachers

MODELS = {"first": "test-teacher-quickgelu", "second": "test-large"}
WIDTHS = {"first": 24, "second": 28}
# not those of the CLIPs, with which each prediction is nearly one-hot
SCALES = {"first": 3, "second": 2}


@pytest.fixture(scope="module", autouse=True)
def _few_digits():
    """All views of all images are cached: two batches of 50."""
    digits = read_digits()
    few = replace(digits, train=digits.train[:100], test=digits.test[:50])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "read", lambda _: few)
        yield


def write_teacher(folder, name, **options):
    """Write a teacher for the digits; returns its class vectors and prompts."""
    digits = {"class_names": world.DIGITS, "num_base": None, "logit_scale": float(SCALES[name])}
    return world.write_teacher(folder, MODELS[name], **{**digits, **options})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folders of two teachers, of CLIPs of other widths and image sizes: vectors and prompts."""
    root = tmp_path_factory.mktemp("teachers")
    return root, {name: write_teacher(root / name, name) for name in MODELS}


def settings(root, **options):
    return {"more_teachers": [str(root / "second")], **options}


@pytest.fixture(scope="module")
def distilled(written, tmp_path_factory):
    """A student of both after one step an epoch, and its folder; no test changes it."""
    folder, steps = tmp_path_factory.mktemp("student"), {"save": True, "limit_train_batches": 1}
    return Distilled(written[0] / "first", folder, trainer=steps, **settings(written[0])), folder


def plain_mean(rows, vectors):
    """Probabilities [B, C] of the mean of the predictions, by loops; ``rows`` are each teacher's features."""
    mixed = np.zeros((len(rows["first"]), len(world.DIGITS)))
    for image, row in enumerate(mixed):
        for name in MODELS:
            powers = [
                math.exp(SCALES[name] * float(rows[name][image] @ vector))
                for vector in vectors[name]
            ]
            row += 0.5 * np.array([power / sum(powers) for power in powers])
    return torch.from_numpy(mixed)


def test_the_target_of_several_teachers_is_the_mean_of_their_predictions(written):
    root, teachers = written
    vectors = {name: made[0].vectors.double().numpy() for name, made in teachers.items()}
    mixed = Teachers([str(root / name) for name in MODELS])
    # so that some predictions are sharp and others are not
    lengths = torch.linspace(0.1, 1, 7)[:, None]
    rows = {
        name: normalized(torch.randn(7, width, generator=torch.Generator().manual_seed(3)))
        * lengths
        for name, width in WIDTHS.items()
    }
    probabilities = mixed.logits(torch.cat(list(rows.values()), dim=1)).exp()
    expected = plain_mean({name: row.double().numpy() for name, row in rows.items()}, vectors)
    assert relative_error(probabilities, expected) < 1e-5
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(7))


def test_a_student_learns_from_all_teachers_each_with_its_own_clip_and_image_size(
    written, distilled, plain_of
):
    (root, teachers), (seen, _) = written, distilled
    batch = seen.batches[0]
    (for_second,), images = batch.teacher_views.values(), batch.images
    assert (images.shape[-1], for_second.shape[-1], len(batch.indices)) == (32, 48, 50)
    vectors, rows = {}, {}
    for (name, model), views in zip(MODELS.items(), (images, for_second), strict=True):
        class_vectors, prompts = teachers[name]
        vectors[name] = class_vectors.vectors.double().numpy()
        rows[name] = normalized(plain_of(model).image_features(views, prompts.double())).numpy()
    target = plain_mean(rows, vectors).log()
    # the student before its first step
    start = world.make_student(root / "first", kd_weight=20, **settings(root))
    tokens = start.encoder.prompts.tokens.detach().double()
    projector = PlainProjector(start.encoder.projector.state_dict())
    features = projector(plain_of("test-student").image_features(images, tokens), True)
    logits = 17 * normalized(features) @ torch.from_numpy(vectors["first"]).T
    expected = plain.distillation(logits, target, 20, 1).item()
    assert seen.losses[0] == pytest.approx(expected, rel=1e-5)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "match"),
        [({"temperature": 2.0}, "temperature 1, not 2.0")],
    )
    def test_settings_that_do_not_fit_each_other(self, options, match, written):
        with world.refused(ConfigError, match):
            world.make_student(written[0] / "first", **settings(written[0], **options))

    def test_teachers_of_other_class_names(self, written, tmp_path):
        root, names = written[0], (*world.DIGITS[:8], "nine", "eight")
        write_teacher(tmp_path / "other", "second", class_names=names)
        match = f"{tmp_path}/other .*class 8 is 'nine' there and 'eight' in {root}/first"
        with world.refused(ArtifactError, match):
            Distilled(root / "first", tmp_path, more_teachers=[str(tmp_path / "other")])

    def test_a_teacher_that_is_not_there(self, written, tmp_path):
        with world.refused(ArtifactError, r"nowhere.class_vectors\.safetensors does not exist"):
            Distilled(written[0] / "first", tmp_path, more_teachers=[str(tmp_path / "nowhere")])

    @pytest.mark.parametrize("more", [[], ["first"], ["retrained"]], ids=str)
    def test_a_checkpoint_of_other_teachers(self, more, written, distilled, tmp_path):
        root = written[0]
        # its cache is filled anew, which must not hide that this teacher is another one
        write_teacher(tmp_path / "retrained", "second", seed=1)
        teachers = [str(tmp_path / name if name == "retrained" else root / name) for name in more]
        resume = {"ckpt_path": distilled[1] / "epoch=0.ckpt", "more_teachers": teachers}
        with world.refused(ConfigError, "made from something else .*teacher"):
            Distilled(root / "first", tmp_path, tmp_path / "new", fill=True, **resume)


def test_a_student_of_several_teachers_is_tested_without_any(distilled, tmp_path, monkeypatch):
    folder = distilled[1]
    monkeypatch.setattr(TunedPrompts, "load", None)
    vectors, gone = str(folder / CLASS_VECTORS_FILE), [str(tmp_path / "gone")]
    student = world.make_student(
        tmp_path / "nowhere", kd_weight=20, class_vectors=vectors, more_teachers=gone
    )
    metrics = world.evaluate(student, tmp_path, world.digits(50), folder / "epoch=1.ckpt")
    assert 0 < metrics["test/acc"] < 1


def test_targets_are_refined_from_the_predictions_of_all_teachers(written, tmp_path, plain_of):
    target = Refined(views=2)
    root, teachers = written
    # every view of an image is then the same, and so is the mean of its features
    data = {"augmentation": "none", "unlabeled_share": 0.5}
    options = {"trainer": {"limit_train_batches": 1}, "data": data, "target": target}
    Distilled(root / "first", tmp_path, **options, **settings(root))
    made = pool_targets.PoolTargets.load(tmp_path / pool_targets.POOL_TARGETS_FILE)
    assert made.made_from["teachers"] == [teachers[name][0].teacher for name in MODELS]
    images, rows, vectors = world.digits(50, **data), {}, {}
    for name, model in MODELS.items():
        pool = images.unlabeled_images(teachers[name][0].preprocessing.resizing)
        views = torch.stack([pool[int(index), 0].images for index in images.selection.indices])
        vectors[name] = teachers[name][0].vectors.double().numpy()
        features = plain_of(model).image_features(views, teachers[name][1].double())
        rows[name] = normalized(features).numpy()
    predicted = plain_mean(rows, vectors).argmax(dim=1)
    assert list(made.before) == torch.bincount(predicted, minlength=10).tolist()


class TestCaches:
    def test_distillation_from_caches_is_distillation_with_the_teachers(
        self, written, tmp_path, monkeypatch
    ):
        root, cache = written[0], tmp_path / "cache"
        plain_run = Distilled(root / "first", tmp_path, **settings(root))
        Distilled(root / "first", tmp_path, cache, fill=True, **settings(root))
        # complete caches need no teacher at all
        monkeypatch.setattr(TunedPrompts, "load", None)
        cached = Distilled(root / "first", tmp_path, cache, **settings(root))
        assert cached.losses == pytest.approx(plain_run.losses, rel=2e-3)
        assert cached.batches[0].teacher_features.shape == (50, 24 + 28)
        # and that of the first serves a student of this teacher alone
        alone = Distilled(root / "first", tmp_path, cache).batches[0].teacher_features
        assert torch.equal(alone, cached.batches[0].teacher_features[:, :24])

    def test_a_missing_cache_of_a_further_teacher_is_named_and_gets_the_views_of_the_first(
        self, written, tmp_path
    ):
        root, cache = written[0], tmp_path / "cache"
        Distilled(root / "first", tmp_path, cache, fill=True, data={"seed": 5})
        with world.refused(DataError, rf"the teacher cache {cache}\.2 does not exist"):
            Distilled(root / "first", tmp_path, cache, **settings(root))
        Distilled(root / "first", tmp_path, cache, fill=True, **settings(root))
        for name, width, size in (("cache", 24, 32), ("cache.2", 28, 48)):
            manifest = json.loads((tmp_path / name / "manifest.json").read_text())
            assert manifest["resizing"]["image_size"] == size
            assert (manifest["view_seed"], manifest["width"]) == (5, width)

    def test_caches_of_different_views_are_refused(self, written, tmp_path):
        root, cache = written[0], tmp_path / "cache"
        Distilled(root / "first", tmp_path, cache, fill=True)
        Distilled(root / "second", tmp_path, tmp_path / "cache.2", fill=True, data={"seed": 5})
        for fill in (False, True):
            with world.refused(DataError, rf"{cache}\.2 .*view_seed is 5 there and 1 here"):
                Distilled(root / "first", tmp_path, cache, fill=fill, **settings(root))
