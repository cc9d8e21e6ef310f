"""Refinement of the teacher's predictions before a student's first epoch."""

from collections import Counter
from dataclasses import replace
from shutil import copytree, ignore_patterns

import numpy as np
import pytest
import torch
import world
from plain import normalized
from runs import rows_of
from torch.nn import functional as F

from kdpl.class_vectors import ClassVectors
from kdpl.clip import ClipConfig, load_image_clip
from kdpl.clip.towers.clip_vit import ClassTokenTower
from kdpl.data.augmentation import LightAffine, resize_and_crop, to_tensor
from kdpl.data.datasets import UnlabeledImages
from kdpl.data.readers.digits import Digits, read_digits
from kdpl.errors import ArtifactError
from kdpl.prompts import PromptConfig
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, PROMPTS_FILE
from kdpl.student import StudentDistillation
from kdpl.targets.encoding import PREPARED_FOLDER
from kdpl.targets.refinement import target as refined_target
from kdpl.targets.refinement.experts import Assigned, Evidence, assign
from kdpl.targets.refinement.pool_targets import POOL_TARGETS_FILE, PoolTargets
from kdpl.targets.refinement.refine import RefinementConfig
from kdpl.targets.refinement.target import Refined

pytestmark = pytest.mark.usefixtures("without_companions")

# 20 labelled images, 84 unlabelled ones, of which some are both
POOL = {"shots": 2, "unlabeled_share": 0.12}
SCALE = 3.0  # not the CLIP's own, with which each prediction is nearly one-hot
SETTINGS = {"neighbors": 4, "rounds": 3, "views": 2, "encoder": "teacher"}


def write_teacher(folder, **options):
    digits = {"class_names": world.DIGITS, "num_base": None, "logit_scale": SCALE}
    world.write_teacher(folder, **digits, **options)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def fresh(teacher, tmp_path):
    """A copy of the teacher, beside which no student has left anything yet."""
    files = ignore_patterns(PREPARED_FOLDER)
    return copytree(teacher, tmp_path / "teacher", ignore=files)


@pytest.fixture
def seen_by(monkeypatch):
    """The evidence of each assignment."""
    evidences = []

    def watched(evidence, *more):
        evidences.append(evidence)
        return assign(evidence, *more)

    monkeypatch.setattr(refined_target, "assign", watched)
    return evidences


@pytest.fixture
def copied(whole, tmp_path):
    """A folder with the targets of another run alone."""
    (tmp_path / POOL_TARGETS_FILE).write_bytes((whole[1] / POOL_TARGETS_FILE).read_bytes())
    return tmp_path


def distil(teacher, folder, callbacks=(), epochs=1, data=(), trainer=(), **options):
    """Fit a student for two steps an epoch in a folder; returns its record."""
    refined = Refined(**{**SETTINGS, **options.pop("refinement", {})})
    student = world.make_student(teacher, kd_weight=20, **{"target": refined, **options})
    domain = world.digits(7, **{**POOL, **dict(data)})
    steps = {"limit_train_batches": 2, **dict(trainer)}
    return world.fit(student, folder, epochs, callbacks, domain, **steps)


def targets_in(folder):
    return PoolTargets.load(folder / POOL_TARGETS_FILE)


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """A fit that was not interrupted, with its checkpoints, and its folder; no test changes it."""
    folder = tmp_path_factory.mktemp("whole")
    return distil(teacher, folder, epochs=2, trainer={"save": True}), folder


@pytest.fixture(scope="module")
def plainly(teacher, plain_of):
    """Features, predictions and labels of the pool, of labelled images outside it, and of validation images."""
    clip, domain = plain_of("test-teacher-quickgelu"), world.digits(7, **POOL)
    prompts = TunedPrompts.load(teacher / PROMPTS_FILE).tensors["vision_prompts.tokens"].double()
    vectors = ClassVectors.load(teacher / CLASS_VECTORS_FILE).vectors.double()
    labels = {record.source: record.label for record in domain.labels.tuning("labeled")}
    pool = [domain.pool.images[i] for i in domain.training_pool.train.tolist()]
    outside = [source for source in labels if source not in pool]
    assert 0 < len(outside) < len(labels) == 20
    validation = domain.labels.tuning("val")

    def features_of(images, index):
        """Of the image as in evaluation, and the mean of this and of a random view, [2, D]."""
        still = resize_and_crop(domain.splits.open_image(images.sources[index]), Resizing(32))
        views = torch.stack([to_tensor(still), images[index, 0].images])
        both = normalized(clip.image_features(views, prompts))
        return normalized(torch.stack([both[0], both.mean(dim=0)]).half().double())

    unlabeled = UnlabeledImages(domain.pool.images, domain.view(Resizing(32)))
    sources = [*outside, *(record.source for record in validation)]
    further = UnlabeledImages(sources, domain.view(Resizing(32)))
    features = [features_of(unlabeled, i) for i in domain.training_pool.train.tolist()]
    features += [features_of(further, i) for i in range(len(further))]
    still, features = torch.stack(features).float().unbind(dim=1)
    seen = [labels.get(source, -1) for source in [*pool, *outside]] + [-1] * len(validation)
    text = (SCALE * features @ vectors.float().T).log_softmax(dim=1)
    refined = 2 * still + features
    refined /= refined.norm(dim=1, keepdim=True)
    return (refined, features), text, torch.tensor(seen), validation


def test_the_file_has_what_the_teachers_features_are_refined_to(whole, plainly):
    features, text, labels, validation = plainly
    # what tests/targets/refinement/test_experts.py holds to a plain implementation
    config = RefinementConfig(**{k: v for k, v in SETTINGS.items() if k != "encoder"})
    held_out = torch.full_like(labels, -1)
    held_out[-len(validation) :] = torch.tensor([record.label for record in validation])
    alone = torch.arange(len(labels))
    assigned = assign(Evidence(*features, text, labels, held_out, alone, trusted=False), config)
    made = targets_in(whole[1])
    n, expected = len(made.images), assigned.assignments
    assert made.images.tolist() == world.digits(7, **POOL).pool.train.tolist()
    assert (made.assignments.float() - expected[:n]).abs().max() < 2e-3
    in_pool = labels[:n] >= 0
    assert made.assignments[in_pool].float().equal(F.one_hot(labels[:n][in_pool], 10).float())
    before, after = text.argmax(dim=1), expected.argmax(dim=1)
    assert (before[:n] != after[:n]).sum() == made.moved > 0
    for counts, classes in ((made.before, before), (made.after, after)):
        assert counts == tuple(torch.bincount(classes[:n], minlength=10).tolist())
    truth = torch.tensor([record.label for record in validation])
    right = [(classes[-len(truth) :] == truth).float().mean().item() for classes in (before, after)]
    assert made.accuracy == pytest.approx(right)
    for image, *classes in made.examples:
        row = made.images.tolist().index(image)
        assert classes == [before[row], after[row]]


@pytest.mark.parametrize(
    ("right", "after", "strength", "taken"),
    [
        ((0.5, 0.6), (5, 5), 30.0, True),
        ((0.5, 0.5), (5, 5), 30.0, True),
        ((0.5, 0.4), (5, 5), 30.0, False),
        (None, (5, 5), None, True),
        (None, (0, 10), None, False),
        (None, (0, 10), 30.0, True),
    ],
)
def test_it_is_taken_unless_labels_or_an_emptied_class_object(right, after, strength, taken):
    weights = (1.0,) if strength is None else (0.4, 1.2)
    assigned = Assigned(torch.empty(0), weights, strength, (1.0,), right, 20)
    counts = [torch.tensor(count) for count in ((5, 5), after)]
    assert Refined()._decide(assigned, counts)[0] == taken


def test_if_not_taken_the_student_learns_the_published_target(fresh, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(Refined, "_decide", lambda *_: (False, "not taken"))
    losses = distil(fresh, tmp_path / "not_taken", epochs=2).losses
    assert losses == distil(fresh, tmp_path / "published", epochs=2, target="teacher").losses
    assert losses != whole[0].losses
    assert not (tmp_path / "published" / POOL_TARGETS_FILE).exists()


def test_a_resumed_run_and_a_second_start_read_the_file(teacher, whole, monkeypatch):
    record, folder = whole
    before = (folder / POOL_TARGETS_FILE).stat().st_mtime_ns
    monkeypatch.setattr(Refined, "evidence", None)
    monkeypatch.setattr(TunedPrompts, "load_image_clip", None)
    resume = {"ckpt_path": folder / "epoch=0.ckpt"}
    resumed = distil(teacher, folder, epochs=2, trainer=resume)
    assert resumed.losses == record.losses[2:]
    assert distil(teacher, folder).losses == record.losses[:2]
    assert (folder / POOL_TARGETS_FILE).stat().st_mtime_ns == before


def test_no_teacher_runs_for_a_student_of_assignments_alone(teacher, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(StudentDistillation, "_teacher_features", None)
    record = distil(teacher, tmp_path, epochs=2)
    assert record.losses == whole[0].losses
    # nor are views made for it
    assert all(batch.teacher_images is None for batch in record.batches)


ALONE = {"vision_prompts": PromptConfig(depth=0), "stored_views": 0}


@pytest.mark.parametrize(
    ("settings", "share"), [(ALONE, 0.5), ({**ALONE, "target": "teacher"}, 0), ({}, 0)]
)
def test_half_of_the_images_are_whole_for_a_projector_alone(settings, share, fresh, tmp_path):
    record = distil(fresh, tmp_path, trainer={"limit_train_batches": 12}, **settings)
    data, whole = world.digits(7, **POOL), []
    for batch in record.batches:
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            source = data.splits.open_image(data.pool.images[index])
            whole.append(image.equal(to_tensor(resize_and_crop(source, Resizing(32)))))
    assert len(whole) == 84
    assert sum(whole) / len(whole) == pytest.approx(share, abs=0.15)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"refinement": {"rounds": 2}}, "target.rounds is 3 there and 2 here"),
        ({"data": {"unlabeled_share": 0.2}}, "images with a target is "),
        ({"data": {"val_shots": 1}}, "validation labels is "),
        ({"data": {"augmentation": LightAffine(1.0)}}, "augmentation.degrees is 7.0 there and 1.0"),
    ],
)
def test_a_file_of_something_else_is_refused(changes, words, teacher, copied):
    with world.refused(ArtifactError, rf"{POOL_TARGETS_FILE} was made .* else \({words}"):
        distil(teacher, copied, [world.NoStep()], **changes)


@pytest.mark.parametrize(("seed", "words"), [(1, "teacher is "), (0, "class vectors is ")])
def test_a_file_of_another_teacher_or_other_class_vectors_is_refused(seed, words, copied):
    write_teacher(copied, seed=seed)
    if seed == 0:
        vectors = ClassVectors.load(copied / CLASS_VECTORS_FILE)
        vectors.vectors.copy_(vectors.vectors.flip(0))
        vectors.save(copied / CLASS_VECTORS_FILE)
    with world.refused(ArtifactError, rf"was made from something else \({words}"):
        distil(copied, copied, [world.NoStep()])


@pytest.mark.parametrize(("depth", "passes"), [(0, 1), (2, 2)])
def test_fewest_passes_give_features_that_later_students_read(depth, passes, tmp_path, monkeypatch):
    encoded = Counter()
    pool = ClassTokenTower._pool

    def counted(tower, x, prompts):
        encoded[tower.embed_dim] += len(x)
        return pool(tower, x, prompts)

    monkeypatch.setattr(ClassTokenTower, "_pool", counted)
    write_teacher(tmp_path, depth=depth)
    refinement, of_teacher = {"encoder": "tower"}, 24
    distil(tmp_path, tmp_path / "first", refinement=refinement)
    domain = world.digits(7, **POOL)
    images = {domain.pool.images[i] for i in domain.training_pool.train.tolist()}
    images |= {record.source for record in domain.labels.tuning("labeled")}
    views = SETTINGS["views"] * (len(images) + len(domain.labels.tuning("val")))
    assert encoded.pop(of_teacher) == passes * views

    # other targets of the same features, and the same targets again
    distil(tmp_path, tmp_path / "second", refinement={**refinement, "rounds": 2})
    with monkeypatch.context() as patch:
        patch.setattr(refined_target, "assign", None)
        distil(tmp_path, tmp_path / "third", refinement=refinement)
    assert of_teacher not in encoded
    made = [targets_in(tmp_path / name).assignments for name in ("first", "second", "third")]
    assert made[0].equal(made[2])
    assert not made[0].equal(made[1])


def test_other_views_have_features_and_a_file_of_their_own(fresh, tmp_path, monkeypatch):
    digits = read_digits()
    monkeypatch.setattr(Digits, "read", lambda _: replace(digits, train=digits.train[:30]))
    # all of the pool is distilled on, so that the seed draws nothing but views
    few_digits = {"shots": 0, "unlabeled_share": 1.0}
    refinement, seed = {"views": 2, "rounds": 1}, {**few_digits, "seed": 2}
    augmentation = {**few_digits, "augmentation": LightAffine(1.0)}
    for number, data in enumerate((few_digits, augmentation, seed)):
        distil(fresh, tmp_path / str(number), data=data, refinement=refinement)
    files = sorted((fresh / PREPARED_FOLDER).rglob("*.npy"))
    # the run's seed draws no stored view
    assert len(files) == len({file.read_bytes() for file in files}) == 2
    with world.refused(ArtifactError, r"was made from something else \(seed is 1 there and 2 here"):
        distil(fresh, tmp_path / "0", [world.NoStep()], data=seed, refinement=refinement)


def test_features_and_targets_are_of_images_and_not_of_their_names(fresh, tmp_path, monkeypatch):
    files, refinement = {"size of images": "1"}, {"views": 1, "rounds": 1}
    monkeypatch.setattr("kdpl.data.datamodule.files_of", lambda _: dict(files))

    def features():
        return {file.parent.name for file in (fresh / PREPARED_FOLDER).rglob("*.npy")}

    distil(fresh, tmp_path / "first", refinement=refinement)
    before = features()
    distil(fresh, tmp_path / "same", refinement=refinement)
    assert features() == before
    files["size of images"] = "2"
    with world.refused(ArtifactError, r"\(size of images is 1 there and 2 here\): remove it, or"):
        distil(fresh, tmp_path / "first", [world.NoStep()], refinement=refinement)
    distil(fresh, tmp_path / "other", refinement=refinement)
    # of the pool, and of the validation images
    assert len(features() - before) == len(before) == 2


def test_with_stored_features_no_teacher_is_loaded_again(teacher, whole, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    cached = distil(teacher, tmp_path, epochs=2, teacher_cache=cache)
    assert not (tmp_path / "cache").exists(), "targets that are taken need no views"
    assert targets_in(tmp_path).assignments.equal(targets_in(whole[1]).assignments)
    assert cached.losses == whole[0].losses

    monkeypatch.setattr(TunedPrompts, "load_image_clip", None)
    again = distil(teacher, tmp_path / "again", epochs=2, teacher_cache=cache)
    assert again.losses == cached.losses


@pytest.mark.parametrize(
    ("data", "seen", "shown"),
    [({"protocol": "base_to_novel"}, {*range(5)}, 10), ({"shots": 0}, set(), 0)],
)
def test_no_label_is_seen_that_the_teacher_did_not_see(data, seen, shown, fresh, tmp_path, seen_by):
    distil(fresh, tmp_path, data=data)
    (evidence,) = seen_by
    assert (evidence.labels >= 0).sum() == shown
    assert not evidence.trusted
    for labels in (evidence.labels, evidence.validation):
        assert {label for label in labels.tolist() if label >= 0} == seen
    assert (targets_in(tmp_path).accuracy is None) == (not seen)


@pytest.mark.parametrize("named", [True, False], ids=["named", "by default"])
def test_the_students_frozen_tower_is_joined_to_the_untuned_teachers(named, tmp_path, seen_by):
    write_teacher(tmp_path, depth=0)
    settings = {"encoders": ["student", "teacher"]} if named else {}
    refinement = {**settings, "encoder": "tower", "views": 1}
    distil(tmp_path, tmp_path / "run", refinement=refinement)
    (evidence,) = seen_by
    tower = load_image_clip(ClipConfig("test-student", world.TAG)).image_tower.eval()
    domain = world.digits(7, **POOL)
    image = domain.splits.open_image(domain.pool.images[int(domain.training_pool.train[0])])
    pooled = tower.pooled(to_tensor(resize_and_crop(image, Resizing(32)))[None])
    number = 0 if named else 1
    block = evidence.features[0].split(evidence.widths)[number]
    assert block.allclose(F.normalize(pooled[0], dim=0), atol=1e-3)
    made_from = targets_in(tmp_path / "run").made_from
    assert made_from["student"] == world.make_student(tmp_path).clip.fingerprint
    encoders = ["student", "teacher"] if named else ["teacher", "student"]
    assert made_from["target"]["encoders"] == encoders


def test_a_tuned_teachers_features_are_alone_by_default(fresh, tmp_path, seen_by):
    distil(fresh, tmp_path / "run")
    (evidence,) = seen_by
    assert evidence.widths == (evidence.features.shape[1],)
    assert targets_in(tmp_path / "run").made_from["target"]["encoders"] == ["teacher"]


def test_groups_of_the_data_are_those_of_evidence_and_file(teacher, tmp_path, monkeypatch, seen_by):
    groups = world.group_digits(monkeypatch)
    distil(teacher, tmp_path)
    (evidence,) = seen_by
    labels = world.digits(7, **POOL).labels
    labeled = torch.nonzero(evidence.truth >= 0).flatten()
    sources = [record.source for record in (*labels.tuning("labeled"), *labels.tuning("val"))]
    assert len(labeled) == len(sources)
    # as many images in each group as there are of it among the labelled ones
    counts = sorted(Counter(map(groups.get, sources)).values())
    assert sorted(evidence.groups[labeled].unique(return_counts=True)[1].tolist()) == counts
    assert max(counts) > 1
    for other in (2, 5):
        world.group_digits(monkeypatch, size=other)
        with world.refused(ArtifactError, r"was made from something else \(labels is "):
            distil(teacher, tmp_path, [world.NoStep()])


def test_features_are_those_of_a_tower_before_its_projection(fresh, tmp_path, seen_by):
    distil(fresh, tmp_path, refinement={"encoder": "tower", "views": 1})
    clip = TunedPrompts.load(fresh / PROMPTS_FILE).load_image_clip()
    domain, visual = world.digits(7, **POOL), clip.image_tower.visual
    source = domain.pool.images[int(domain.training_pool.train[0])]
    image = resize_and_crop(domain.splits.open_image(source), clip.preprocessing.resizing)
    projected = visual(clip.image_tower.pixels(to_tensor(image)[None]))
    features = seen_by[0].features[:1]
    assert (seen_by[0].probed[:1] - features).abs().max() < 1e-6  # of one view, both are the same
    assert features.shape[1] == visual.proj.shape[0] != visual.proj.shape[1]
    # kept as float16
    assert normalized(features @ visual.proj).sub(normalized(projected)).abs().max() < 2e-3


@pytest.mark.slow
def test_two_processes_cache_filter_and_refine_what_one_does(tmp_path):
    two = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    for name, trainer in (("one", {}), ("two", two)):
        (tmp_path / name).mkdir()
        teacher, cache = write_teacher(tmp_path / name), str(tmp_path / name / "cache")
        options = {"pool_filter": 0.3, "trainer": trainer}
        distil(teacher, tmp_path / name, **options)
        published = {"target": "teacher", "teacher_cache": cache}
        distil(teacher, tmp_path / name / "published", epochs=2, **options, **published)
    one, both = tmp_path / "one", tmp_path / "two"
    features, expected = (np.load(folder / "cache/shard-00000.npy") for folder in (both, one))
    assert np.allclose(features, expected, rtol=0, atol=3e-4)
    left_out, expected = (rows_of(folder / "left_out.csv") for folder in (both, one))
    assert [row["image"] for row in left_out] == [row["image"] for row in expected] != []
    made, expected = targets_in(both), targets_in(one)
    assert (made.assignments - expected.assignments).abs().max() < 1e-3
    assert made.images.equal(expected.images)
    assert (made.moved, made.examples) == (expected.moved, expected.examples)
