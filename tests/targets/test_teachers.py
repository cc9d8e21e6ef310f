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
from world import TAG, Distilled

from kdpl.data.readers.digits import Digits, read_digits
from kdpl.errors import ArtifactError, ConfigError, DataError
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE
from kdpl.targets.processes import Processes
from kdpl.targets.refinement import pool_targets
from kdpl.targets.refinement.target import Refined
from kdpl.targets.teachers import Mixture, Teachers, mixture_weights

MODELS = {"first": "test-teacher-quickgelu", "second": "test-large"}
WIDTHS = {"first": 24, "second": 28}
# not those of the CLIPs, with which each prediction is nearly one-hot
SCALES = {"first": 3, "second": 2}
ZERO_SHOT = f"zero_shot:test-large,{TAG}"


@pytest.fixture(scope="module", autouse=True)
def _few_digits():
    """All views of all images are cached: two batches of 50."""
    digits = read_digits()
    few = replace(digits, train=digits.train[:100], val=digits.val[:40], test=digits.test[:50])
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


@pytest.fixture
def settings(written):
    return {"more_teachers": [str(written[0] / "second")]}


@pytest.fixture(scope="module")
def distilled(written, tmp_path_factory):
    """A student of both after one step an epoch, and its folder; no test changes it."""
    folder, steps = tmp_path_factory.mktemp("student"), {"save": True, "limit_train_batches": 1}
    second = {"more_teachers": [str(written[0] / "second")]}
    options = {"trainer": steps, "mixture": Mixture("confidence", 0.3)}
    return Distilled(written[0] / "first", folder, **options, **second), folder


def plain_mixture(rows, vectors, mixture, temperature=1.0, fixed=(0.5, 0.5)):
    """Probabilities [B, C] by loops; ``rows`` are each teacher's features."""
    mixed = np.zeros((len(rows["first"]), len(world.DIGITS)))
    for image, row in enumerate(mixed):
        predictions = []
        for name in MODELS:
            logits = [
                SCALES[name] * float(rows[name][image] @ vector) / temperature
                for vector in vectors[name]
            ]
            powers = [math.exp(logit) for logit in logits]
            predictions.append([power / sum(powers) for power in powers])
        weights = list(fixed)
        if mixture.weights == "confidence":
            entropies = [-sum(p * math.log(p) for p in each) for each in predictions]
            weights = [math.exp(-entropy / mixture.temperature) for entropy in entropies]
        for weight, each in zip(weights, predictions, strict=True):
            row += weight / sum(weights) * np.array(each)
    return torch.from_numpy(mixed)


def vectors_of(teachers):
    return {name: made[0].vectors.double().numpy() for name, made in teachers.items()}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    "mixture", [Mixture(), Mixture("confidence"), Mixture("confidence", 0.2)], ids=str
)
def test_the_target_of_several_teachers_is_the_mixture_of_their_predictions(
    mixture, temperature, written, tmp_path
):
    root, teachers = written
    first, _ = teachers["first"]
    mixed = Teachers(root / "first", first, [str(root / "second")], mixture, temperature)
    mixed.read_further(tmp_path, Processes())
    # so that some predictions are sharp and others are not
    lengths = torch.linspace(0.1, 1, 7)[:, None]
    rows = {
        name: normalized(torch.randn(7, width, generator=torch.Generator().manual_seed(3)))
        * lengths
        for name, width in WIDTHS.items()
    }
    logits = mixed.logits(torch.cat(list(rows.values()), dim=1).float())
    # as the loss reads them
    probabilities = (logits / temperature).softmax(dim=1)
    plain_rows = {name: row.double().numpy() for name, row in rows.items()}
    expected = plain_mixture(plain_rows, vectors_of(teachers), mixture, temperature)
    assert relative_error(probabilities, expected) < 1e-5


def test_weights_by_validation_images_have_the_least_log_loss():
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (200,), generator=draw)
    logits = torch.randn(2, 200, 5, generator=draw)
    logits[:, torch.arange(200), labels] += torch.tensor([[1.5], [0.7]])
    log_probabilities = logits.log_softmax(dim=-1)
    weights = mixture_weights(log_probabilities, labels)
    right = log_probabilities[:, torch.arange(200), labels].exp().double()

    def loss(share):
        return -(share * right[0] + (1 - share) * right[1]).log().mean().item()

    best = min(np.linspace(0, 1, 2001), key=loss)
    assert weights.sum().item() == pytest.approx(1)
    assert loss(float(weights[0])) <= loss(best) + 1e-5


def test_a_student_learns_from_all_teachers_each_with_its_own_clip_and_image_size(
    written, distilled, plain_of
):
    (root, teachers), (seen, folder) = written, distilled
    batch = seen.batches[0]
    assert batch.teacher_features.shape == (50, 24 + 28)
    rows = {}
    for (name, model), size in zip(MODELS.items(), (32, 48), strict=True):
        data = world.digits(50)
        view = data.view(teachers[name][0].preprocessing.resizing)
        indices = batch.indices.tolist()
        views = torch.stack([view(data.pool.images[i], i, 0) for i in indices])
        assert views.shape[-1] == size
        prompts = teachers[name][1].double()
        rows[name] = normalized(plain_of(model).image_features(views, prompts)).numpy()
    vectors = vectors_of(teachers)
    target = plain_mixture(rows, vectors, Mixture("confidence", 0.3)).log()
    # the student before its first step
    start = world.make_student(root / "first", kd_weight=20)
    tokens = start.encoder.prompts.tokens.detach().double()
    projector = PlainProjector(start.encoder.projector.state_dict())
    features = projector(plain_of("test-student").image_features(batch.images, tokens), True)
    logits = 17 * normalized(features) @ torch.from_numpy(vectors["first"]).T
    expected = plain.distillation(logits, target, 20, 1).item()
    # features are stored in half precision
    assert seen.losses[0] == pytest.approx(expected, rel=2e-3)
    sizes = [
        json.loads((folder / f"{name}/manifest.json").read_text())["resizing"]["image_size"]
        for name in ("teacher_cache", "teacher_cache.2")
    ]
    assert sizes == [32, 48]


def test_an_original_clip_needs_no_run_and_predicts_as_it_does(written, tmp_path, plain_of):
    root, _ = written
    seen = Distilled(root / "first", tmp_path, more_teachers=[ZERO_SHOT])
    second = seen.student.teacher.module.all[1]
    texts = [plain.prompt_text("a photo of a", name) for name in world.DIGITS]
    clip = plain_of("test-large")
    assert relative_error(second.vectors.vectors, normalized(clip.text_features(texts))) < 1e-5
    assert second.vectors.logit_scale == pytest.approx(13)
    # a second start reads what is there
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("teachers/*/*")}
    assert len(before) == 2
    Distilled(root / "first", tmp_path, more_teachers=[ZERO_SHOT])
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("teachers/*/*")}


def test_weights_that_need_validation_images_come_from_their_stored_features(
    written, settings, tmp_path
):
    root, _ = written
    mixture = Mixture("validation")
    seen = Distilled(root / "first", tmp_path, mixture=mixture, **settings)
    fixed = seen.student.teacher.module.fixed
    assert fixed.sum().item() == pytest.approx(1)
    assert fixed.tolist() != [0.5, 0.5]
    with world.refused(ConfigError, "mixture.weights is validation"):
        Distilled(
            root / "first", tmp_path / "2", mixture=mixture, data={"val_shots": 0}, **settings
        )


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(written, settings, distilled, tmp_path):
    whole, folder = distilled
    options = {"trainer": {"limit_train_batches": 1}, "mixture": Mixture("confidence", 0.3)}
    resumed = Distilled(
        written[0] / "first", tmp_path, ckpt_path=folder / "epoch=0.ckpt", **options, **settings
    )
    assert all(torch.equal(value, whole.state[name]) for name, value in resumed.state.items())


class TestRefusals:
    def test_settings_that_do_not_fit_each_other(self, written, settings):
        with world.refused(ConfigError, "a mixture of teachers has probabilities"):
            world.make_student(written[0] / "first", distill="l1", **settings)
        with world.refused(ConfigError, "first teacher gives the class vectors"):
            world.make_student(ZERO_SHOT, **settings)

    def test_teachers_of_other_class_names(self, written, tmp_path):
        root, names = written[0], (*world.DIGITS[:8], "nine", "eight")
        write_teacher(tmp_path / "other", "second", class_names=names)
        with world.refused(ArtifactError, f"further teacher {tmp_path}/other .*class 8 is 'nine'"):
            Distilled(root / "first", tmp_path, more_teachers=[str(tmp_path / "other")])

    def test_a_teacher_that_is_not_there(self, written, tmp_path):
        with world.refused(ArtifactError, r"nowhere.class_vectors\.safetensors does not exist"):
            Distilled(written[0] / "first", tmp_path, more_teachers=[str(tmp_path / "nowhere")])

    @pytest.mark.parametrize("more", [[], ["first"], ["retrained"]], ids=str)
    def test_a_checkpoint_of_other_teachers(self, more, written, distilled, tmp_path):
        root = written[0]
        write_teacher(tmp_path / "retrained", "second", seed=1)
        teachers = [str(tmp_path / name if name == "retrained" else root / name) for name in more]
        resume = {"ckpt_path": distilled[1] / "epoch=0.ckpt", "more_teachers": teachers}
        with world.refused(ConfigError, "made from something else .*teacher"):
            Distilled(root / "first", tmp_path, **resume, mixture=Mixture("confidence", 0.3))

    def test_a_checkpoint_of_other_weights(self, written, settings, distilled, tmp_path):
        with world.refused(ConfigError, "made from something else .*teacher"):
            Distilled(
                written[0] / "first", tmp_path, ckpt_path=distilled[1] / "epoch=0.ckpt", **settings
            )


def test_a_student_of_several_teachers_is_tested_without_any(distilled, tmp_path, monkeypatch):
    folder = distilled[1]
    monkeypatch.setattr(TunedPrompts, "load", None)
    vectors, gone = str(folder / CLASS_VECTORS_FILE), [str(tmp_path / "gone")]
    student = world.make_student(
        tmp_path / "nowhere", kd_weight=20, class_vectors=vectors, more_teachers=gone
    )
    metrics = world.evaluate(student, tmp_path, world.digits(50), folder / "epoch=1.ckpt")
    assert 0 < metrics["test/acc"] < 1


def test_targets_are_refined_from_the_predictions_of_all_teachers(
    written, settings, tmp_path, plain_of
):
    target = Refined(views=2)
    root, teachers = written
    # every view of an image is then the same, and so is the mean of its features
    data = {"augmentation": "none", "unlabeled_share": 0.5}
    options = {"trainer": {"limit_train_batches": 1}, "data": data, "target": target}
    Distilled(root / "first", tmp_path, **options, **settings)
    made = pool_targets.PoolTargets.load(tmp_path / pool_targets.POOL_TARGETS_FILE)
    assert made.made_from["teachers"][0] == teachers["first"][0].teacher
    assert len(made.made_from["teachers"]) == 3
    images, rows = world.digits(50, **data), {}
    for name, model in MODELS.items():
        view = images.view(teachers[name][0].preprocessing.resizing)
        targeted = images.pool.targeted.tolist()
        views = torch.stack([view(images.pool.images[i], i, 0) for i in targeted])
        features = plain_of(model).image_features(views, teachers[name][1].double())
        rows[name] = normalized(features).numpy()
    predicted = plain_mixture(rows, vectors_of(teachers), Mixture()).argmax(dim=1)
    assert list(made.before) == torch.bincount(predicted, minlength=10).tolist()


class TestCaches:
    def test_complete_caches_need_no_teacher_and_the_first_serves_its_student_alone(
        self, written, settings, tmp_path, monkeypatch
    ):
        root, cache = written[0], tmp_path / "cache"
        filled = Distilled(root / "first", tmp_path, cache, fill=True, **settings)
        assert filled.batches == [] or filled.losses
        monkeypatch.setattr(TunedPrompts, "load", None)
        cached = Distilled(root / "first", tmp_path, cache, **settings)
        alone = Distilled(root / "first", tmp_path, cache).batches[0].teacher_features
        assert torch.equal(alone, cached.batches[0].teacher_features[:, :24])

    def test_a_further_teacher_gets_the_views_of_the_first(self, written, settings, tmp_path):
        root, cache = written[0], tmp_path / "cache"
        Distilled(root / "first", tmp_path, cache, fill=True, data={"seed": 5})
        Distilled(root / "first", tmp_path, cache, **settings)
        for name, width, size in (("cache", 24, 32), ("cache.2", 28, 48)):
            manifest = json.loads((tmp_path / name / "manifest.json").read_text())
            assert manifest["resizing"]["image_size"] == size
            assert (manifest["view_seed"], manifest["width"]) == (5, width)

    def test_caches_of_different_views_are_refused(self, written, settings, tmp_path):
        root, cache = written[0], tmp_path / "cache"
        Distilled(root / "first", tmp_path, cache, fill=True)
        Distilled(root / "second", tmp_path, tmp_path / "cache.2", fill=True, data={"seed": 5})
        with world.refused(DataError, rf"{cache}\.2 has 2 views of seed 5"):
            Distilled(root / "first", tmp_path, cache, **settings)
