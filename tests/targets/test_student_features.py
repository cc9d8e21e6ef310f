"""A student whose projector alone learns, from stored features of its frozen tower."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import world
from lightning.pytorch import Callback
from plain import relative_error
from torch.nn import functional as F

from kdpl.clip import ClipConfig
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.datasets import stored_view
from kdpl.errors import ConfigError
from kdpl.optim import OptimConfig
from kdpl.prompts import PromptConfig
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, PROMPTS_FILE
from kdpl.targets.engine import chosen_engine
from kdpl.targets.fidelity import Fidelity
from kdpl.targets.refinement.pool_targets import POOL_TARGETS_FILE
from kdpl.targets.refinement.target import Refined

pytestmark = pytest.mark.usefixtures("without_companions")

POOL = {"shots": 2, "unlabeled_share": 0.12}
VIEWS = 3
ALONE = {"vision_prompts": PromptConfig(depth=0), "stored_views": VIEWS}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    world.write_teacher(folder, class_names=world.DIGITS, num_base=None, logit_scale=3.0)
    return folder


def distil(teacher, folder, callbacks=(), epochs=2, data=(), trainer=(), **options):
    target = Refined(views=2, neighbors=4, rounds=2)
    student = world.make_student(teacher, **{"kd_weight": 20, "target": target, **ALONE, **options})
    data = {"batch_size": 7, **POOL, **dict(data)}
    domain = world.digits(data.pop("batch_size"), **data)
    steps = {"limit_train_batches": 2, "limit_val_batches": 1.0, **dict(trainer)}
    return world.fit(student, folder, epochs, callbacks, domain, **steps), student


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    record, student = distil(teacher, folder, trainer={"save": True})
    return record, student, folder


def test_a_step_sees_what_the_tower_says_of_the_view_that_is_named(whole):
    record, student, _ = whole
    domain, tower = world.digits(7, **POOL), student.encoder.tower.module
    views = replace(domain.view(Resizing(32)), seed=1)
    names = set()
    for batch in record.batches:
        assert batch.images.shape == (7, 0)
        stored = student.plan.student_features.of(batch)
        for row, index, view in zip(
            stored, batch.indices.tolist(), batch.views.tolist(), strict=True
        ):
            image = views.open_image(domain.pool.images[index])
            pixels = to_tensor(resize_and_crop(image, Resizing(32)))
            if view:
                pixels = views.make(image, views.draw(image, index, view - 1))
            with torch.no_grad():
                expected = tower.pooled(pixels[None])[0]
            assert relative_error(row, expected) < 1e-3
            names.add(view)
    assert names == {0, 1, 2}


def test_features_of_a_sample_of_the_pool_are_those_of_its_images(whole, teacher):
    _, student, _ = whole
    domain = world.digits(7, **POOL)
    domain.setup("fit")
    drawn = student.plan.pool.sample(9)
    images = [domain.splits.open_image(source) for source in domain.pool.images.take(drawn)]
    classifier = student.classifier()
    found = classifier.decide(student.stored_features(drawn), torch.zeros(9, 10))
    embedded = torch.stack([one.embedding for one in found])
    assert relative_error(embedded, classifier.embed(images)) < 1e-3
    unknown = np.setdiff1d(np.arange(len(domain.pool.images)), student.plan.pool.targeted)
    assert student.stored_features(np.append(drawn, unknown[:1])) is None


def test_half_of_the_views_are_as_in_evaluation():
    drawn = np.array([stored_view(8, 1, epoch, i) for epoch in range(20) for i in range(100)])
    assert (drawn == 0).mean() == pytest.approx(0.5, abs=0.04)
    assert np.bincount(drawn, minlength=8)[1:].min() > 90
    assert {stored_view(1, 1, epoch, 0) for epoch in range(9)} == {0}


def test_the_first_loss_is_that_of_a_plain_projector_on_these_features(whole, teacher):
    record, student, _ = whole
    fresh, batch = (
        world.make_student(teacher, kd_weight=20, target="refined", **ALONE),
        record.batches[0],
    )
    joint = fresh.encoder.tower.module.project(student.plan.student_features.of(batch))
    projected = F.normalize(fresh.encoder.projector.train()(joint))
    logits = fresh.logit_scale * projected @ fresh.head.module.class_vectors.T
    targets = student.plan.values.of(batch.indices).softmax(dim=1)
    kl = (targets * (targets.log() - logits.log_softmax(dim=1))).sum() / logits.numel()
    assert record.losses[0] == pytest.approx(20 * kl.item(), rel=1e-5)


def test_an_interrupted_run_ends_with_the_same_bits_and_encodes_nothing(whole, teacher, counted):
    record, student, folder = whole
    resume = {"ckpt_path": folder / "epoch=0.ckpt"}
    resumed, again = distil(teacher, folder, trainer=resume)
    assert resumed.losses == record.losses[2:]
    state = again.encoder.state_dict()
    assert all(state[name].equal(value) for name, value in student.encoder.state_dict().items())
    assert not counted


def test_shards_that_an_interruption_lost_are_computed_again(whole, teacher, counted):
    record, _, folder = whole
    for file in student_shards(teacher):
        file.unlink()
    again, _ = distil(teacher, folder)
    assert again.losses == record.losses
    # the views of the pool, and the validation images once
    assert len(counted) == VIEWS * 84 + 198


def student_shards(teacher):
    of_student = [
        file.parent
        for file in (teacher / "prepared").glob("*/made_from.json")
        if '"clip"' in file.read_text()
    ]
    assert len(of_student) == 2
    return [shard for folder in of_student for shard in folder.glob("*.npy")]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"seed": 2, "unlabeled_share": 1.0}},
        {"optim": OptimConfig(lr=0.001)},
        {"target": Refined(views=2, neighbors=4, rounds=1)},
    ],
    ids=["seed", "learning rate", "target"],
)
def test_another_student_of_the_same_images_encodes_nothing(changes, teacher, tmp_path, counted):
    data = {"unlabeled_share": 1.0} if "data" in changes else {}
    first, _ = distil(teacher, tmp_path / "first", data=data)
    counted.clear()
    second, _ = distil(teacher, tmp_path / "second", **changes)
    assert set(counted) <= {24}, "the student's tower ran"
    assert second.losses != first.losses


@pytest.mark.parametrize(
    "changed", [{"mean": (0.1, 0.2, 0.3)}, {"quick_gelu": True}], ids=["mean", "activation"]
)
def test_a_network_that_computes_otherwise_has_features_of_its_own(
    changed, teacher, tmp_path, counted
):
    distil(teacher, tmp_path / "first")
    counted.clear()
    model = ClipConfig("test-student", world.TAG, **changed)
    distil(teacher, tmp_path / "second", clip=model)
    # the pool's views and the validation images, by the student
    assert counted.count(20) == VIEWS * 84 + 198


def test_features_go_to_the_folder_that_is_given(teacher, tmp_path):
    distil(teacher, tmp_path / "run", features_folder=str(tmp_path / "features"))
    assert len(list((tmp_path / "features").glob("*/made_from.json"))) == 2


def test_validation_and_fidelity_are_those_of_the_images(teacher, tmp_path):
    measured = []
    for name, stored in (("stored", VIEWS), ("images", 0)):
        # both are of the student before its first step
        options = {"stored_views": stored, "optim": OptimConfig(lr=1e-9), "epochs": 1}
        notes = Metrics()
        distil(
            teacher, tmp_path / name, [Fidelity(), notes], data={"unlabeled_share": 1.0}, **options
        )
        measured.append(notes.metrics)
    stored, images = measured
    assert stored.keys() == images.keys()
    for name in ("val/acc", "val/fidelity", "pool/unseen"):
        assert stored[name] == pytest.approx(images[name], abs=0.011)
    assert stored["val/kl"] == pytest.approx(images["val/kl"], rel=0.05)


class Metrics(Callback):
    def on_train_end(self, trainer, pl_module):
        self.metrics = {k: v.item() for k, v in trainer.callback_metrics.items()}


@pytest.mark.parametrize(
    "options",
    [
        {"stored_views": 0},
        {"vision_prompts": PromptConfig(2, 2)},
        {"fine_tune": True},
        {"target": "teacher"},
    ],
    ids=["turned off", "prompts", "whole tower", "published target"],
)
def test_a_tower_that_learns_and_the_published_target_see_images(options, teacher, tmp_path):
    record, student = distil(teacher, tmp_path, epochs=1, **options)
    assert student.plan.student_features is None
    assert all(batch.images.shape == (7, 3, 32, 32) for batch in record.batches)


def test_another_number_of_views_is_refused_on_resume(whole, teacher, tmp_path):
    folder = whole[2]
    with world.refused(Exception, "views is 3 of each, stored"):
        distil(teacher, folder, trainer={"ckpt_path": folder / "epoch=0.ckpt"}, stored_views=2)


@pytest.mark.slow
def test_two_processes_are_as_one(teacher, tmp_path):
    states = []
    for n in (1, 2):
        several = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
        folder = tmp_path / str(n)
        # what an earlier fit stored is not read
        options = {"features_folder": str(folder / "features"), "data": {"batch_size": 14 // n}}
        distil(teacher, folder, [SaveState(folder)], trainer=several if n > 1 else {}, **options)
        states.append(torch.load(folder / "state.pt", weights_only=True))
        assert (folder / POOL_TARGETS_FILE).is_file()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)


class SaveState(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        if trainer.is_global_zero:
            state = pl_module.encoder.projector.state_dict()
            torch.save(state, self.folder / "state.pt")


def test_openvino_encodes_as_pytorch_does_and_is_named_in_the_origin(teacher, tmp_path):
    pytest.importorskip("openvino")
    stored = {}
    for engine in ("torch", "openvino"):
        folder = tmp_path / engine
        _, student = distil(teacher, folder / "run", engine=engine, features_folder=str(folder))
        inputs = student.target_inputs()
        features, pooled = inputs.features(None, 2, pooled=True)
        stored[engine] = [features.mean, pooled.still, inputs.student_features_of(None, VIEWS).mean]
        origins = [json.loads(file.read_text()) for file in folder.glob("*/made_from.json")]
        assert {origin.get("engine", "torch") for origin in origins} == {engine}
    for plain, compiled in zip(stored["torch"], stored["openvino"], strict=True):
        assert relative_error(compiled, plain) < 1e-3


@pytest.mark.parametrize(
    ("engine", "pixels", "device", "precision", "expected"),
    [
        ("torch", 10**12, "cpu", "32-true", "torch"),
        ("auto", 10**12, "cpu", "32-true", "openvino"),
        ("auto", 10**6, "cpu", "32-true", "torch"),
        ("auto", 10**12, "cuda", "32-true", "torch"),
        ("auto", 10**12, "cpu", "bf16-mixed", "torch"),
        ("openvino", 1, "cpu", "32-true", "openvino"),
    ],
)
def test_openvino_runs_where_it_is_worth_it(engine, pixels, device, precision, expected):
    pytest.importorskip("openvino")
    assert chosen_engine(engine, pixels, torch.device(device), precision) == expected


def test_openvino_is_refused_where_it_cannot_compute_the_same():
    with pytest.raises(ConfigError, match=r"set trainer.accelerator to cpu and trainer.precision"):
        chosen_engine("openvino", 1, torch.device("cuda"), "32-true")


def test_auto_is_torch_where_openvino_is_not_installed(monkeypatch):
    monkeypatch.setattr("kdpl.targets.engine.find_spec", lambda _: None)
    assert chosen_engine("auto", 10**12, torch.device("cpu"), "32-true") == "torch"


def test_teachers_of_one_clip_share_features_without_visual_prompts(tmp_path, counted):
    for name, context in (("first", "a photo of a"), ("second", "a drawing of a")):
        folder = tmp_path / name
        folder.mkdir()
        shapes = {"class_names": world.DIGITS, "num_base": None, "logit_scale": 3.0}
        prompts = world.tuned_prompts({}, context=context)
        prompts.save(folder / PROMPTS_FILE)
        vectors = world.frozen_vectors(context=context, teacher=prompts.teacher, **shapes)
        vectors.save(folder / CLASS_VECTORS_FILE)
        counted.clear()
        distil(folder, tmp_path / f"run {name}", features_folder=str(tmp_path / "features"))
        assert bool(counted) == (name == "first")
