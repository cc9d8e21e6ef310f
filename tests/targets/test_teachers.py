"""Several teachers, against a plain loop over images, teachers and classes."""

import json
import math

import numpy as np
import plain
import pytest
import torch
import world
from plain import PlainProjector, normalized, relative_error
from world import Distilled

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


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folders of two teachers for the digits, of CLIPs of other widths and image sizes: vectors and prompts."""
    root = tmp_path_factory.mktemp("teachers")
    digits = {"class_names": world.DIGITS, "num_base": None}
    scales = {name: {"logit_scale": float(scale)} for name, scale in SCALES.items()}
    return root, {
        name: world.write_teacher(root / name, MODELS[name], **digits, **scales[name])
        for name in MODELS
    }


def settings(root, **options):
    return {"more_teachers": [str(root / "second")], **options}


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
    rows = {
        name: torch.randn(7, width, generator=torch.Generator().manual_seed(3))
        for name, width in WIDTHS.items()
    }
    # so that some predictions are sharp and others are not
    rows = {
        name: normalized(each.double()) * torch.linspace(0.1, 1, 7)[:, None]
        for name, each in rows.items()
    }
    probabilities = mixed.logits(torch.cat(list(rows.values()), dim=1).float()).exp()
    expected = plain_mean({name: each.numpy() for name, each in rows.items()}, vectors)
    assert relative_error(probabilities, expected) < 1e-5
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(7))


def test_a_student_learns_from_all_teachers_each_with_its_own_clip_and_image_size(
    written, tmp_path, plain_of
):
    root, teachers = written
    seen = Distilled(root / "first", tmp_path, trainer={"limit_train_batches": 1}, **settings(root))
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
    own = normalized(
        PlainProjector(start.encoder.projector.state_dict())(
            plain_of("test-student").image_features(
                images, start.encoder.prompts.tokens.detach().double()
            ),
            True,
        )
    )
    logits = 17 * own @ torch.from_numpy(vectors["first"]).T
    assert seen.losses[0] == pytest.approx(
        plain.distillation(logits, target, 20, 1).item(), rel=1e-5
    )


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            (
                {"temperature": 2.0},
                "their mean is defined at temperature 1, not 2.0: set loss.kind: kl and",
            ),
            ({"distill": "mse"}, "several teachers have no features in common for loss.kind mse"),
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
            with world.refused(
                ConfigError, "the .*checkpoint was made from something else .*teacher"
            ):
                Distilled(root / "first", tmp_path, more_teachers=others, **resume)


def test_a_fit_that_fills_its_cache_is_not_resumed_with_another_second_teacher(written, tmp_path):
    root = written[0]
    Distilled(
        root / "first", tmp_path, trainer={"save": True, "limit_train_batches": 1}, **settings(root)
    )
    world.write_teacher(
        tmp_path / "retrained", MODELS["second"], class_names=world.DIGITS, num_base=None, seed=1
    )
    changed = {
        "more_teachers": [str(tmp_path / "retrained")],
        "ckpt_path": tmp_path / "epoch=0.ckpt",
    }
    with world.refused(ConfigError, "the .*checkpoint was made from something else .*teacher"):
        Distilled(root / "first", tmp_path, tmp_path / "new", fill=True, **changed)


def test_a_student_of_several_teachers_is_tested_without_any(written, tmp_path, monkeypatch):
    root = written[0]
    Distilled(
        root / "first", tmp_path, trainer={"save": True, "limit_train_batches": 1}, **settings(root)
    )
    copy = tmp_path / CLASS_VECTORS_FILE
    monkeypatch.setattr(TunedPrompts, "load", None)
    nowhere = {"class_vectors": str(copy), "more_teachers": [str(tmp_path / "gone")]}
    student = world.make_student(tmp_path / "nowhere", kd_weight=20, **nowhere)
    metrics = world.evaluate(student, tmp_path, world.digits(50), tmp_path / "epoch=1.ckpt")
    assert 0 < metrics["test/acc"] < 1


def test_targets_are_refined_from_the_predictions_of_all_teachers(written, tmp_path, plain_of):
    target = Refined(views=2)
    root, teachers = written
    # every view of an image is then the same, and so is the mean of its features
    data = {"augmentation": "none", "unlabeled_share": 0.1}
    options = {"trainer": {"limit_train_batches": 1}, "data": data, "target": target}
    Distilled(root / "first", tmp_path, **options, **settings(root))
    made = pool_targets.PoolTargets.load(tmp_path / pool_targets.POOL_TARGETS_FILE)
    assert made.made_from["teachers"] == [teachers[name][0].teacher for name in MODELS]
    images, rows, vectors = world.digits(50, **data), {}, {}
    for name, model in MODELS.items():
        pool = images.unlabeled_images(teachers[name][0].preprocessing.resizing)
        views = torch.stack([pool[int(index), 0].images for index in images.selection.indices])
        vectors[name] = teachers[name][0].vectors.double().numpy()
        rows[name] = normalized(
            plain_of(model).image_features(views, teachers[name][1].double())
        ).numpy()
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
        alone = Distilled(root / "first", tmp_path, cache)
        assert torch.equal(
            alone.batches[0].teacher_features, cached.batches[0].teacher_features[:, :24]
        )

    def test_a_cache_of_a_further_teacher_gets_the_views_of_the_first(self, written, tmp_path):
        root, cache = written[0], tmp_path / "cache"
        Distilled(root / "first", tmp_path, cache, fill=True, data={"seed": 5})
        Distilled(root / "first", tmp_path, cache, fill=True, **settings(root))
        manifests = [
            json.loads((tmp_path / name / "manifest.json").read_text())
            for name in ("cache", "cache.2")
        ]
        assert [(m["view_seed"], m["width"], m["resizing"]["image_size"]) for m in manifests] == [
            (5, 24, 32),
            (5, 28, 48),
        ]

    def test_caches_of_different_views_are_refused(self, written, tmp_path):
        root, cache = written[0], tmp_path / "cache"
        Distilled(root / "first", tmp_path, cache, fill=True)
        Distilled(root / "second", tmp_path, tmp_path / "cache.2", fill=True, data={"seed": 5})
        said = rf"{cache}\.2 was made from something else \(view_seed is 5 there and 1 here\): choo"
        for fill in (False, True):
            with world.refused(DataError, said):
                Distilled(root / "first", tmp_path, cache, fill=fill, **settings(root))

    def test_a_missing_cache_of_a_further_teacher_is_named(self, written, tmp_path):
        root, cache = written[0], tmp_path / "cache"
        Distilled(root / "first", tmp_path, cache, fill=True)
        with world.refused(DataError, rf"the teacher cache {cache}\.2 does not exist: fill it"):
            Distilled(root / "first", tmp_path, cache, **settings(root))
