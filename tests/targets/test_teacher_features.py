"""A teacher whose context alone learns, from stored features of its image tower."""

from dataclasses import replace

import pytest
import torch
import world
from plain import relative_error

from kdpl.class_vectors import ClassVectors
from kdpl.clip import ClipConfig
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.batches import Batch, LabeledBatch
from kdpl.optim import OptimConfig
from kdpl.prompts import PromptConfig
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE
from kdpl.teacher import RegularizerWeights, TeacherPromptTuning

DATA = {"shots": 3, "val_shots": 2}
VIEWS = 3
IMAGES, VAL = 30, 20  # of ten classes
ZERO_SHOT_TERMS = {"regularizers": RegularizerWeights(text=0, image=1, logits=1)}


@pytest.fixture(scope="module", autouse=True)
def few_templates():
    """Encode the ensemble of the frozen CLIP in one template instead of 60."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdpl.teacher.PROMPTSRC_TEMPLATES", ["a photo of a {}.".format])
        yield


def tune(folder, epochs=2, data=(), trainer=(), **options):
    torch.manual_seed(0)
    alone = {"vision_prompts": PromptConfig(depth=0), "text_prompts": PromptConfig(2, 1)}
    settings = {**alone, **ZERO_SHOT_TERMS, "stored_views": VIEWS, **options}
    teacher = TeacherPromptTuning(ClipConfig("test-teacher-quickgelu", world.TAG), **settings)
    data = {"batch_size": 6, **DATA, **dict(data)}
    domain = world.digits(data.pop("batch_size"), **data)
    steps = {"limit_val_batches": 1.0, **dict(trainer)}
    return world.fit(teacher, folder, epochs, (), domain, **steps), teacher


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    record, teacher = tune(folder, trainer={"save": True})
    return record, teacher, folder


def view_of(domain, index, view):
    """The pixels of a stored view, made by the augmentation."""
    views = replace(domain.view(Resizing(32)), seed=1)
    image = views.open_image(domain.labels.training()[index].source)
    if view == 0:
        return to_tensor(resize_and_crop(image, Resizing(32)))
    return views.make(image, views.draw(image, index, view - 1))


def test_a_step_is_that_of_the_view_that_is_named(whole):
    record, teacher, _ = whole
    domain, seen = world.digits(6, **DATA), set()
    training = domain.labels.training()
    for batch in record.batches:
        assert batch.images.shape == (6, 0)
        named = [*zip(batch.indices.tolist(), batch.views.tolist(), strict=True)]
        pixels = torch.stack([view_of(domain, *name) for name in named])
        with torch.no_grad():
            expected = teacher.prompts.encode_images(teacher.image_tower.module, pixels)
        assert relative_error(teacher.image_features(batch), expected) < 1e-3
        assert batch.labels.tolist() == [training[index].single for index, _ in named]
        seen.update(named)
    assert {view for _, view in seen} == {0, 1, 2}
    assert {index for index, _ in seen} == {*range(IMAGES)}


def test_loss_and_gradient_of_the_context_are_those_of_the_pixels(whole, tmp_path):
    record, _, _ = whole
    batch, domain = record.batches[0], world.digits(6, **DATA)
    named = zip(batch.indices.tolist(), batch.views.tolist(), strict=True)
    pixels = torch.stack([view_of(domain, *name) for name in named])

    def of_pixels(teacher):
        teacher.log = lambda *_, **__: None
        loss = teacher.training_step(LabeledBatch(pixels, batch.labels), 0)
        (gradient,) = torch.autograd.grad(loss, [teacher.prompts.text_prompts.context])
        return loss.item(), gradient

    torch.manual_seed(0)
    seen, _ = tune_and_record(tmp_path, of_pixels)
    loss, gradient = seen.started
    assert seen.losses[0] == pytest.approx(loss, rel=1e-3)
    assert seen.batches[0].indices.equal(batch.indices)
    stored = seen.gradients["prompts.text_prompts.context"]
    assert relative_error(stored, gradient) < 1e-2


def tune_and_record(folder, start):
    """Tune for one step; ``start`` is called with the teacher before it."""
    return tune(folder, 1, trainer={"start": start, "limit_train_batches": 1})


def test_an_interrupted_run_ends_with_the_same_bits_and_encodes_nothing(whole, counted):
    record, teacher, folder = whole
    resumed, again = tune(folder, trainer={"ckpt_path": folder / "epoch=0.ckpt"})
    assert resumed.losses == record.losses[IMAGES // 6 :]
    state = again.state_dict()
    assert all(state[name].equal(value) for name, value in teacher.state_dict().items())
    assert not counted


def test_each_view_is_encoded_once_and_shared_by_runs_with_one_folder(tmp_path, counted):
    shared = {"features_folder": str(tmp_path / "features")}
    first, _ = tune(tmp_path / "first", **shared)
    assert len(counted) == VIEWS * IMAGES + VAL
    counted.clear()
    second, _ = tune(tmp_path / "second", optim=OptimConfig(lr=0.5), **shared)
    assert not counted
    assert second.losses != first.losses


def test_validation_is_that_of_the_images(tmp_path):
    # both are of the context before the first step
    still = {"optim": OptimConfig(lr=1e-12), "epochs": 1}
    stored, images = (
        tune(tmp_path / str(views), stored_views=views, **still)[0].logged for views in (VIEWS, 0)
    )
    assert stored["val/acc"] == pytest.approx(images["val/acc"], abs=0.051)


@pytest.mark.parametrize(
    "options",
    [
        {"stored_views": 0},
        {"vision_prompts": PromptConfig(2, 2), "stored_views": "auto"},
    ],
    ids=["turned off", "visual prompts"],
)
def test_images_are_seen_without_stored_views_and_by_visual_prompts(options, tmp_path):
    record, teacher = tune(tmp_path, epochs=1, **options)
    assert teacher.stored is None
    assert all(batch.images.shape == (6, 3, 32, 32) for batch in record.batches)
    assert not (tmp_path / "prepared").exists()


def test_nothing_is_stored_by_default():
    clip, none = ClipConfig("test-teacher-quickgelu", world.TAG), PromptConfig(depth=0)
    of_context = {"vision_prompts": none, "text_prompts": PromptConfig(2, 1)}
    assert TeacherPromptTuning(clip, **of_context).stored_views == 0
    assert TeacherPromptTuning(clip, **of_context, stored_views="auto").stored_views == 8


@pytest.mark.parametrize(("views", "now"), [(2, "2 of each, stored"), (0, "None")])
def test_other_views_are_refused_on_resume(views, now, whole):
    folder = whole[2]
    with world.refused(Exception, f"views is 3 of each, stored there and {now} here"):
        tune(folder, trainer={"ckpt_path": folder / "epoch=0.ckpt"}, stored_views=views)


def test_images_outside_of_a_fit_are_encoded_as_ever(whole):
    _, teacher, _ = whole
    batch = Batch(world.images_of(torch.arange(2), seed=3))
    with torch.no_grad():
        expected = teacher.prompts.encode_images(teacher.image_tower.module, batch.images)
        assert teacher.image_features(batch).equal(expected)


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path):
    several = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    vectors = []
    for n in (1, 2):
        folder = tmp_path / str(n)
        tune(folder, data={"batch_size": 6 // n}, trainer=several if n > 1 else {})
        vectors.append(ClassVectors.load(folder / CLASS_VECTORS_FILE).vectors)
    torch.testing.assert_close(*vectors, rtol=1e-4, atol=1e-5)
