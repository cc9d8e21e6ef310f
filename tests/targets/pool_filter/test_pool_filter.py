"""Unlabelled images that are left out as unlike all classes."""

import numpy as np
import plain
import pytest
import torch
import world
from runs import rows_of

from kdpl.class_vectors import ClassVectors
from kdpl.classifier import Classifier
from kdpl.data.augmentation import resize_and_crop, to_tensor
from kdpl.data.datasets import UnlabeledImages
from kdpl.errors import ConfigError, DataError
from kdpl.prompts.tuned import TunedPrompts
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, PROMPTS_FILE
from kdpl.targets import pool_filter as callback

POOL = {"shots": 1, "unlabeled_share": 0.06}  # 10 labelled images, 42 unlabelled ones


def distil(teacher, folder, callbacks=(), data=(), ckpt_path=None, save=False, **options):
    """Fit a student for two epochs in a folder; returns its record, which also has the steps' images."""
    student = world.make_student(teacher, kd_weight=20, pool_filter=0.3, **options)
    domain = world.digits(7, **POOL, **dict(data))
    record = world.fit(student, folder, 2, callbacks, domain, ckpt_path, save=save)
    record.seen = [batch.indices.tolist() for batch in record.batches]
    return record


def left_out(folder):
    return {row["image"]: float(row["similarity"]) for row in rows_of(folder / "left_out.csv")}


@pytest.fixture(scope="module")
def whole(teacher_folder, tmp_path_factory):
    """A fit that was not interrupted, with its checkpoints, and its folder; no test changes it."""
    folder = tmp_path_factory.mktemp("whole")
    return distil(teacher_folder, folder, save=True), folder


def test_images_below_the_quantile_of_labelled_ones_are_left_out(teacher_folder, whole, plain_of):
    record, folder = whole
    prompts = TunedPrompts.load(teacher_folder / PROMPTS_FILE).tensors["vision_prompts.tokens"]
    vectors = ClassVectors.load(teacher_folder / CLASS_VECTORS_FILE).vectors.double()
    domain, clip = world.digits(7, **POOL), plain_of("test-teacher-quickgelu")

    def similarities(images, indices):
        """Of the image as in evaluation, and three random views of it."""
        values = []
        for i in indices:
            still = resize_and_crop(domain.splits.open_image(images.sources[i]), Resizing(32))
            views = [to_tensor(still), *(images[i, view].images for view in range(3))]
            features = clip.image_features(torch.stack(views), prompts.double())
            values.append(plain.similarity(features, vectors))
        return values

    view, training = domain.view(Resizing(32)), domain.labels.training()
    labeled = UnlabeledImages([record.source for record in training], view)
    pool = UnlabeledImages(domain.pool.images, view)
    indices = domain.training_pool.train.tolist()
    least = np.quantile(similarities(labeled, range(len(labeled))), 0.3)
    by_index = dict(zip(indices, similarities(pool, indices), strict=True))
    expected = {pool.sources[i]: value for i, value in by_index.items() if value < least}
    assert 0 < len(expected) < len(indices)
    # features are kept as float16
    assert left_out(folder) == pytest.approx(expected, abs=1e-3)
    kept = {i for i, value in by_index.items() if value >= least}
    assert {i for step in record.seen for i in step} <= kept
    assert len(record.seen) == 2 * (len(kept) // 7)
    assert record.logged["pool/kept"] == pytest.approx(len(kept) / len(indices))


def test_a_cache_changes_nothing_and_loads_no_teacher(teacher_folder, whole, tmp_path, monkeypatch):
    cache = str(tmp_path / "cache")
    first = distil(teacher_folder, tmp_path / "first", teacher_cache=cache)
    assert first.seen == whole[0].seen
    assert first.losses == pytest.approx(whole[0].losses, rel=2e-3)
    assert left_out(tmp_path / "first") == left_out(whole[1])

    monkeypatch.setattr(TunedPrompts, "load_image_clip", None)
    second = distil(teacher_folder, tmp_path / "second", teacher_cache=cache)
    assert second.losses == first.losses
    assert left_out(tmp_path / "second") == left_out(tmp_path / "first")


def test_usual_is_what_is_kept(whole):
    folder = whole[1] / "classifier"
    classifier, domain = Classifier.load(folder), world.digits(7, **POOL)
    pool = [domain.pool.images[i] for i in domain.training_pool.train.tolist()]
    images = [domain.splits.open_image(source) for source in pool]
    assert len(images) == 42
    left = left_out(whole[1])
    usual = [image for source, image in zip(pool, images, strict=True) if source not in left]
    assert 20 <= len(usual) < 42
    center = classifier.companions["unknown"].center
    torch.testing.assert_close(center, classifier.embed(usual).mean(dim=0), atol=1e-3, rtol=1e-3)


def test_a_resumed_run_leaves_out_the_same_without_asking_again_and_needs_the_same_list(
    teacher_folder, whole, tmp_path, monkeypatch
):
    record, folder = whole
    monkeypatch.setattr(callback, "_similarities", None)
    resumed = distil(teacher_folder, folder, ckpt_path=folder / "epoch=0.ckpt")
    assert resumed.losses == record.losses[len(record.losses) // 2 :]
    header, *rows = (folder / callback.LEFT_OUT_FILE).read_text().splitlines(keepends=True)
    (tmp_path / callback.LEFT_OUT_FILE).write_text("".join([header, *rows[1:]]))
    with world.refused(ConfigError, r"made from something else \(images to distil on is \w+ there"):
        distil(teacher_folder, tmp_path, ckpt_path=folder / "epoch=0.ckpt")


def test_what_would_leave_nothing_is_refused(teacher_folder, tmp_path, monkeypatch):
    values = iter([torch.ones(10), torch.zeros(42)])
    monkeypatch.setattr(callback, "_similarities", lambda *_: next(values))
    with world.refused(DataError, "pool_filter leaves out all 42 unlabelled images"):
        distil(teacher_folder, tmp_path, callbacks=[world.NoStep()])
