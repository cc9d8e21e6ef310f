"""Distillation from a cache of the teacher's features, against distillation with the teacher itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import world
from PIL import Image
from plain import relative_error
from world import Distilled

from kdpl.clip import Frozen
from kdpl.data.augmentation import RandomResizedCrop
from kdpl.data.readers.digits import Digits, read_digits
from kdpl.data.sampling import generator
from kdpl.errors import ConfigError, DataError
from kdpl.prompts import PromptConfig
from kdpl.prompts.tuned import TunedPrompts
from kdpl.targets import Target, TargetValues

pytestmark = pytest.mark.usefixtures("without_companions")

OTHER_SIZE = {"model": "test-timm", "vision_prompts": PromptConfig(depth=0)}


@pytest.fixture(scope="module", autouse=True)
def _few_digits():
    """All views of all images are cached: two batches of 50."""
    digits = read_digits()
    few = replace(digits, train=digits.train[:100])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "read", lambda _: few)
        yield


class Runs:
    """A student distilled with its teacher, while it fills a cache, and from the cache alone."""

    def __init__(self, teacher, folder, **options):
        self.cache = folder / "cache"
        self.plain = Distilled(teacher, folder, **options)
        self.filling = Distilled(teacher, folder, self.cache, **options)
        with pytest.MonkeyPatch.context() as patch:
            # a complete cache needs no teacher at all
            patch.setattr(TunedPrompts, "load", None)
            self.cached = Distilled(teacher, folder, self.cache, **options)


@pytest.fixture(scope="module")
def runs_of_kl(teacher_folder, tmp_path_factory):
    return Runs(teacher_folder, tmp_path_factory.mktemp("kl"))


@pytest.fixture(scope="module")
def runs_of_crops(teacher_folder, tmp_path_factory):
    """Of another image size than the teacher's."""
    options = {**OTHER_SIZE, "data": {"augmentation": "random_resized_crop"}}
    return Runs(teacher_folder, tmp_path_factory.mktemp("crops"), **options)


def plain_views(indices, epoch, size):
    """Crops of digits, rendered one by one from the images themselves, uint8 [B, 3, S, S]."""
    digits, views = read_digits(), []
    for index in indices.tolist():
        image = digits.open_image(digits.train[index].source)
        draw = generator(1, "augmentation", epoch=epoch, index=index)
        top, left, height, width, flipped = RandomResizedCrop().parameters(draw, 32, 32)
        view = image.crop((left, top, left + width, top + height)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        views.append(
            np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else view)
        )
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("runs", ["runs_of_kl", "runs_of_crops"])
def test_distillation_from_a_cache_is_distillation_with_the_teacher(runs, request):
    runs = request.getfixturevalue(runs)
    plain, cached = runs.plain, runs.cached
    assert cached.student.teacher.module.tower is None
    assert cached.losses == runs.filling.losses
    assert all(torch.equal(value, runs.filling.state[name]) for name, value in cached.state.items())
    for seen, expected in zip(cached.batches, plain.batches, strict=True):
        assert seen.teacher_features is not None
        assert expected.teacher_features is None
        assert torch.equal(seen.images, expected.images)
        assert torch.equal(seen.indices, expected.indices)
    # the cache's features are float16
    assert cached.losses == pytest.approx(plain.losses, rel=2e-3)
    for name, value in cached.state.items():
        # batch norm cancels the first bias, which rounding alone moves
        if not name.endswith(("projector.layers.0.bias", "num_batches_tracked")):
            assert relative_error(value, plain.state[name]) < 5e-3, name


class Even(Target):
    """A target that no teacher's prediction is needed for."""

    uses_teacher = False

    def logits(self, predicted, indices):
        return torch.zeros(len(indices), 10)


class EvenOnce(world.KeptTarget):
    """One that needs none once it is prepared."""

    def gather(self, inputs):
        inputs.encoder()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        images = torch.from_numpy(inputs.pool.targeted)
        return TargetValues(images, torch.zeros(len(images), 10))


def test_a_target_that_needs_no_teacher_once_prepared_keeps_none_and_no_views_of_a_cache(
    runs_of_kl, teacher_folder, tmp_path
):
    run = Distilled(teacher_folder, tmp_path, runs_of_kl.cache, target=EvenOnce())
    assert all(batch.teacher_features is None for batch in run.batches)
    assert run.student.teacher.module.tower is None


def test_a_target_without_a_teacher_reads_no_cache(teacher_folder, tmp_path):
    options = {"target": Even(), "trainer": {"limit_train_batches": 1}}
    plain = Distilled(teacher_folder, tmp_path, **options)
    unread = Distilled(teacher_folder, tmp_path, tmp_path / "no cache", **options)
    assert unread.losses == plain.losses
    assert all(batch.teacher_features is None for batch in unread.batches)
    assert not (tmp_path / "no cache").exists()


def test_a_view_is_rendered_at_the_size_of_each_tower_with_a_cache_and_without(runs_of_crops):
    plain = runs_of_crops.plain
    plain.student.load_teacher()
    teacher = plain.student.teacher.module
    batches = zip(plain.batches, runs_of_crops.cached.batches, strict=True)
    for step, (batch, from_cache) in enumerate(batches):
        for_teacher = batch.teacher_images
        assert torch.equal(batch.images, plain_views(batch.indices, step // 2, 48))
        assert torch.equal(for_teacher, plain_views(batch.indices, step // 2, 32))
        features = teacher.features(for_teacher)
        assert torch.allclose(from_cache.teacher_features.float(), features, atol=1e-3)


def test_one_cache_serves_students_of_any_image_size(runs_of_kl, teacher_folder, tmp_path):
    large = Distilled(teacher_folder, tmp_path, runs_of_kl.cache, **OTHER_SIZE)
    for one, other in zip(runs_of_kl.cached.batches, large.batches, strict=True):
        assert torch.equal(one.teacher_features, other.teacher_features)
        assert (one.images.shape[-1], other.images.shape[-1]) == (32, 48)


def test_a_cache_of_something_else_is_refused(teacher_folder, runs_of_kl, tmp_path):
    world.write_teacher(tmp_path, class_names=world.DIGITS, num_base=None, seed=1)
    with world.refused(DataError, r"from something else \(teacher is \w+ there"):
        Distilled(tmp_path, tmp_path, runs_of_kl.cache)


def test_a_run_is_resumed_with_the_same_views_alone(teacher_folder, tmp_path):
    whole = Distilled(teacher_folder, tmp_path, trainer={"save": True})
    resume = {"ckpt_path": tmp_path / "epoch=0.ckpt"}
    for views, seed, words in (
        (1, 1, "views is one in each epoch there and 1 of each here"),
        (2, 5, "seed of the views is 1 there and 5 here"),
    ):
        cache = tmp_path / f"{views} views"
        student = world.make_student(teacher_folder, teacher_cache=str(cache))
        world.fit(student, tmp_path, views, (), world.digits(50, seed=seed))
        with world.refused(ConfigError, words):
            Distilled(teacher_folder, tmp_path, cache, **resume)
    resumed = Distilled(teacher_folder, tmp_path, tmp_path / "new", **resume)
    assert resumed.losses == pytest.approx(whole.losses[2:], rel=2e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_features_are_the_teachers(precision, teacher_folder, tmp_path, monkeypatch):
    settings = {"trainer": {"precision": precision, "limit_train_batches": 1}}
    plain = Distilled(teacher_folder, tmp_path, **settings)
    cached = Distilled(teacher_folder, tmp_path, tmp_path / "cache", **settings)
    for batch in cached.batches:
        with plain.student.trainer.precision_plugin.forward_context():
            expected = plain.student.teacher.module.features(batch.images)
        rounding = torch.finfo(batch.teacher_features.dtype).eps
        assert relative_error(batch.teacher_features, expected) < rounding
    # after the first step, some processors round in half precision by more than the features
    assert cached.losses[0] == pytest.approx(plain.losses[0], rel=1e-4)
    assert cached.student.teacher.module.tower is None
    # to the last bit with weights that autocast casts
    monkeypatch.setattr(Frozen, "store_in", lambda *_: None)
    cast = Distilled(teacher_folder, tmp_path, tmp_path / "other", **settings)
    assert cast.losses == cached.losses
