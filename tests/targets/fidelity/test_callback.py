"""Agreement of a student with its target on unlabelled images that it has not seen."""

import pytest
import torch
import world
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import DATA, SHORT, STAGES
from world import refused

from kdpl.__main__ import main
from kdpl.class_vectors import ClassVectors
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.names import Names
from kdpl.data.pool import UnlabeledPool
from kdpl.data.sampling import generator, share_of
from kdpl.errors import ConfigError, DataError
from kdpl.targets import Target, TargetValues
from kdpl.targets.fidelity import Fidelity
from kdpl.targets.frozen_teacher import FrozenTeacher
from kdpl.targets.held_out_pool import hold_out

pytestmark = pytest.mark.usefixtures("without_companions")

POOL = {"shots": 2, "unlabeled_share": 0.5}  # 20 labelled images, 350 unlabelled ones


def distil(teacher, folder, *callbacks, epochs=2, data=(), ckpt_path=None, trainer=(), **options):
    """Fit a student for a few steps an epoch in a folder; returns its record, the student and the domain."""
    options.setdefault("kd_weight", 20)
    student, by_epoch, note = world.make_student(teacher, **options), [], Callback()
    note.on_train_epoch_end = lambda trainer, _: by_epoch.append(
        {k: v.item() for k, v in trainer.callback_metrics.items() if "train" not in k}
    )
    domain = world.digits(20, **{**POOL, **dict(data)})
    settings = {"limit_train_batches": 4, **dict(trainer)}
    callbacks = [*callbacks, note]
    record = world.fit(student, folder, epochs, callbacks, domain, ckpt_path, **settings)
    record.student, record.domain, record.by_epoch = student, domain, by_epoch
    return record


def write_teacher(folder, model="test-teacher-quickgelu"):
    """Write a teacher whose predictions differ from image to image: its class vectors are directions between features."""
    about = {"class_names": world.DIGITS, "num_base": None}
    world.write_teacher(folder, model, **about)
    teacher = FrozenTeacher(folder, ClassVectors.of_teacher(str(folder)))
    teacher.load()
    images = world.digits(1).preview(10, teacher.vectors.preprocessing.resizing)
    features = teacher.features(images)
    vectors = torch.nn.functional.normalize(features - features.mean(dim=0), dim=1)
    world.write_teacher(folder, model, vectors=vectors, **about)
    return folder


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def whole(teacher_folder, tmp_path_factory):
    """A fit that was not interrupted, with its checkpoints, and its folder; no test changes it."""
    folder = tmp_path_factory.mktemp("whole")
    callback = Fidelity()
    record = distil(teacher_folder, folder, callback, trainer={"save": True})
    record.targets = torch.cat(callback._targets)
    return record, folder


def assert_plain(record, target=None):
    """Require agreement and KL, image by image in double precision, with what was distilled."""
    student, domain = record.student.eval(), record.domain
    student.load_teacher()
    teacher, agreed, nats = student.teacher.module, [], []
    resizing = teacher.vectors.preprocessing.resizing
    for index in student.plan.pool.held_out.tolist():
        image = domain.splits.open_image(domain.pool.images[index])
        view, for_teacher = (
            to_tensor(resize_and_crop(image, to))[None] for to in (student.resizing, resizing)
        )
        with torch.no_grad():
            wanted = teacher.logits(teacher.features(for_teacher))
            wanted = (target or Target()).logits(wanted, torch.tensor([index]))[0].double()
            given = student.class_logits(view)[0].double()
        p, q = (torch.exp(logits - logits.max()) for logits in (wanted, given))
        p, q = p / p.sum(), q / q.sum()
        agreed.append(float(p.argmax() == q.argmax()))
        nats.append(sum(a * (a / b).log() for a, b in zip(p, q, strict=True) if a > 0).item())
    assert record.logged["val/fidelity"] == pytest.approx(sum(agreed) / len(agreed), abs=1e-6)
    assert record.logged["val/kl"] == pytest.approx(sum(nats) / len(nats), rel=1e-4)


def test_a_plain_loop_counts_the_same_on_images_that_are_not_distilled_on_nor_labelled(whole):
    record, _ = whole
    assert_plain(record)
    assert 0 < record.logged["val/fidelity"] < 1
    assert record.logged["pool/unseen"] == 100
    names = {"val/fidelity", "val/kl", "pool/unseen"}
    assert [logged.keys() for logged in record.by_epoch] == [names] * 2
    pool, labels = record.student.plan.pool, record.domain.labels
    unseen = set(pool.held_out.tolist())
    assert len(unseen) == 100
    assert not unseen & {*torch.cat([batch.indices for batch in record.batches]).tolist()}
    assert unseen | set(pool.train.tolist()) == set(pool.targeted.tolist())
    assert len(pool.train) == 250
    labeled = {labeled.source for labeled in (*labels.training(), *labels.tuning("val"))}
    assert not labeled & {*pool.images.take(pool.held_out)}
    # some of them are in the pool, and would be drawn otherwise
    first = generator(1, "unseen").permutation(pool.targeted)[:100]
    assert labeled & {*pool.images.take(first)}


@pytest.mark.parametrize(("batches", "every"), [(0, 1), (1.0, 2)])
def test_it_is_measured_when_validation_would_run(batches, every, whole, teacher_folder, tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val/fidelity", mode="max", filename="best")
    trainer = {
        "limit_val_batches": batches,
        "num_sanity_val_steps": 2,
        "check_val_every_n_epoch": every,
        "enable_checkpointing": True,
    }
    record = distil(teacher_folder, tmp_path, Fidelity(), best, trainer=trainer)
    measured = [logged.get("val/fidelity") for logged in record.by_epoch]
    expected = [logged["val/fidelity"] for logged in whole[0].by_epoch]
    # labelled validation images change nothing of it
    assert record.losses == whole[0].losses
    assert measured == ([None, expected[1]] if every == 2 else expected)
    assert record.logged["val/kl"] == whole[0].logged["val/kl"]
    assert ("val/acc" in record.logged) == bool(batches)
    if batches or every == 1:
        chosen = max(value for value in measured if value is not None)
        assert best.best_model_score.item() == pytest.approx(chosen)


def test_a_resumed_run_holds_out_the_same_images_and_as_many(whole, teacher_folder, tmp_path):
    record, folder = whole
    resumed = distil(teacher_folder, tmp_path, Fidelity(), ckpt_path=folder / "epoch=0.ckpt")
    assert resumed.student.plan.pool.held_out.tolist() == record.student.plan.pool.held_out.tolist()
    assert resumed.losses == record.losses[len(record.losses) // 2 :]
    assert resumed.logged == record.logged
    with refused(ConfigError, "images held out is 100 there and 0 here"):
        distil(teacher_folder, tmp_path, ckpt_path=folder / "epoch=0.ckpt")

    without = distil(teacher_folder, tmp_path / "without", epochs=1, trainer={"save": True})
    assert not len(without.student.plan.pool.held_out)
    assert "val/fidelity" not in without.logged
    checkpoint = tmp_path / "without/epoch=0.ckpt"
    with refused(ConfigError, "images held out is 0 there and 100 here"):
        distil(teacher_folder, tmp_path, Fidelity(), ckpt_path=checkpoint)


def test_with_a_cache_targets_are_still_of_the_evaluation_view(whole, teacher_folder, tmp_path):
    cache = {"teacher_cache": f"{tmp_path}/cache", "epochs": 1}
    for run in ("filled", "read"):
        callback = Fidelity()
        assert_plain(distil(teacher_folder, tmp_path / run, callback, **cache))
        assert torch.equal(torch.cat(callback._targets), whole[0].targets)


def test_in_mixed_precision_it_is_nearly_the_same(whole, teacher_folder, tmp_path):
    callback = Fidelity()
    distil(teacher_folder, tmp_path, callback, epochs=1, trainer={"precision": "bf16-mixed"})
    targets = torch.cat(callback._targets)
    assert targets.dtype == torch.float32
    assert (targets - whole[0].targets).abs().max() < 0.05 * whole[0].targets.abs().max()


def test_a_teacher_sees_an_image_in_its_own_size(tmp_path):
    teacher = write_teacher(tmp_path, "test-large")
    assert_plain(distil(teacher, tmp_path / "run", Fidelity(), epochs=1))


def test_a_prepared_target_is_that_of_the_unseen_images_too(teacher_folder, tmp_path):
    """Its indices are the same whether images are held out or not, so that its file can be used again."""

    class Moved(world.KeptTarget):
        def gather(self, inputs):
            self.indices = inputs.pool.targeted.tolist()
            self.features = inputs.features(None, 1)[0].mean
            return TargetValues(torch.tensor(self.indices), 10 * self.features[:, :10])

        def logits(self, predicted, indices):
            rows = [self.indices.index(index) for index in indices.tolist()]
            return 10 * self.features[rows][:, : predicted.shape[1]]

    target, without = Moved(), Moved()
    record = distil(teacher_folder, tmp_path, Fidelity(), epochs=1, target=target)
    again = distil(teacher_folder, tmp_path, epochs=1, target=without)
    assert target.indices == record.student.plan.pool.targeted.tolist()
    assert again.student.plan.values.images.tolist() == target.indices
    # read from the file of the first
    assert not hasattr(without, "indices")
    assert_plain(record, target)


def test_images_unlike_all_classes_are_not_measured_on(teacher_folder, tmp_path):
    record = distil(teacher_folder, tmp_path, Fidelity(), epochs=1, pool_filter=0.3)
    pool = record.student.plan.pool
    assert 0 < record.logged["pool/unseen"] == len(pool.held_out) < 100
    assert not pool.left_out & {*pool.images.take(pool.held_out)}
    assert record.logged["pool/kept"] == pytest.approx(len(pool.targeted) / 350)


def test_a_teacher_has_no_fidelity(tmp_path):
    with refused(ConfigError, "Probe has no target to compare it with"):
        world.fit(world.Probe(), tmp_path, callbacks=[Fidelity()], domain=world.digits(4))


def pool_of(images, seed=1, share=1.0):
    return UnlabeledPool.share(Names.of(f"{number}.png" for number in range(images)), share, seed)


@pytest.mark.parametrize(
    ("images", "unseen"), [(200, 100), (2000, 100), (4000, 200), (150_000, 5000)]
)
def test_a_share_within_limits_is_held_out(images, unseen):
    held_out = hold_out(pool_of(images), ()).held_out.tolist()
    assert len(held_out) == len({*held_out}) == unseen
    assert held_out == sorted(held_out)


def test_it_is_drawn_by_the_seed_from_the_share_that_is_distilled_on():
    pools = (pool_of(1000, seed, 0.5) for seed in (1, 1, 2))
    first, again, other = (hold_out(pool, ()).held_out.tolist() for pool in pools)
    assert first == again != other
    assert {*first} < {*share_of(1000, 0.5, 1).tolist()}


def test_labelled_images_are_not_held_out_under_any_name(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    sources = [str(tmp_path / f"{number}.png") for number in range(240)]
    pool = UnlabeledPool.share(Names.of(sources), 1.0, seed=1)
    labeled = [str(tmp_path / "link" / f"{number}.png") for number in range(140)]
    assert hold_out(pool, labeled).held_out.tolist() == [*range(140, 240)]


@pytest.mark.parametrize(("images", "labeled"), [(199, 0), (240, 141)])
def test_more_than_half_or_a_labelled_image_is_not_held_out(images, labeled):
    with pytest.raises(DataError, match=f"the pool has {images} images, too few to hold 100"):
        hold_out(pool_of(images), (f"{number}.png" for number in range(labeled)))


def test_a_run_refuses_a_pool_that_is_too_small_before_stage_1(tmp_path, capsys):
    few = ["--student=fidelity", "--data.init_args.unlabeled_share=0.1"]
    assert main(["run", *DATA, *STAGES, *few, *SHORT, f"--out={tmp_path}/run"]) != 0
    assert "the pool has 70 images, too few to hold 100" in capsys.readouterr().err
    assert not (tmp_path / "run" / "teacher").exists()
