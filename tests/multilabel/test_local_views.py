"""Targets from crops of each image, held to a plain implementation."""

import json
import math
import shutil
from itertools import pairwise

import numpy as np
import plain
import pytest
import torch
import world
from PIL import Image
from runs import CONFIGS

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.class_vectors import ClassVectors
from kdpl.doubt.words import NEGATIVE_VECTORS_FILE
from kdpl.errors import ConfigError
from kdpl.multilabel.local_views import (
    LOCAL_VIEWS_FILE,
    Crops,
    LocalViews,
    pooled,
    standardized,
)
from kdpl.runtime.artifacts import read_tensors
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE
from kdpl.targets import Target

POOL = {"shots": 0, "unlabeled_share": 0.02}


def pooled_plainly(features, texts, classes):
    found = []
    for c in range(classes):
        total = 0.0
        for feature in features.tolist():
            cosines = [sum(a * b for a, b in zip(feature, text, strict=True)) for text in texts]
            highest = max(cosines)
            powers = [math.exp(each - highest) for each in cosines]
            total += (powers[c] / sum(powers)) ** 2
        found.append(total)
    return found


def log_odds_plainly(scores, sharpness, margin, floor):
    rows = np.log(np.maximum(np.array(scores, dtype=np.float64), 1e-6))
    result = np.empty_like(rows)
    for c in range(rows.shape[1]):
        mean = sum(rows[:, c]) / len(rows)
        spread = math.sqrt(sum((rows[:, c] - mean) ** 2) / len(rows))
        for i in range(len(rows)):
            p = 1 / (1 + math.exp(-sharpness * ((rows[i, c] - mean) / spread - margin)))
            p = min(max(p, floor), 1 - floor)
            result[i, c] = math.log(p / (1 - p))
    return torch.from_numpy(result)


@pytest.mark.parametrize("size", [(64, 64), (90, 41), (33, 120)])
def test_crops_of_a_scale_cover_the_image_on_a_grid(size):
    crops = Crops((3, 1, 2.5), 1 / 3, Resizing(32))
    boxes = crops.boxes(*size)
    assert boxes.count(None) == 1
    for scale in (3, 2.5):
        edge = round(min(size) / scale)
        own = [box for box in boxes if box and box[2] - box[0] == edge]
        assert all(bottom - top == edge for _, top, _, bottom in own)
        for axis, length in enumerate(size):
            starts = sorted({box[axis] for box in own})
            assert (starts[0], starts[-1]) == (0, length - edge)
            gaps = [after - before for before, after in pairwise(starts)]
            assert max(gaps) <= edge / 3 + 1
        assert len(own) == len({*own})


def test_a_crop_is_resized_as_the_teacher_takes_images():
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    made = Crops((1, 2), 1.0, Resizing(20))(image)
    assert made.shape == (1 + 2 * 3, 3, 20, 20)
    assert made.dtype == torch.uint8
    # an edge of 20 pixels needs no resizing
    left = torch.from_numpy(np.array(image)[:20, :20]).permute(2, 0, 1)
    assert made[1].equal(left)


def test_scores_and_log_odds_are_those_of_a_plain_implementation():
    draw = torch.Generator().manual_seed(0)
    texts = 5 * torch.nn.functional.normalize(torch.randn(6, 8, generator=draw), dim=1)
    images = torch.nn.functional.normalize(torch.randn(12, 9, 8, generator=draw), dim=2)
    scores = torch.stack([pooled(features, texts, 4) for features in images])
    expected = [pooled_plainly(features, texts.tolist(), 4) for features in images]
    assert torch.allclose(scores.double(), torch.tensor(expected).double(), atol=1e-5)

    target = LocalViews(sharpness=3.0, margin=0.2, floor=0.05)
    plainly = log_odds_plainly(expected, 3.0, 0.2, 0.05)
    assert torch.allclose(target.log_odds(scores).double(), plainly, atol=1e-3)
    assert target.log_odds(scores).abs().max() <= math.log(0.95 / 0.05) + 1e-6


def test_the_order_of_images_does_not_matter_to_the_last_bit():
    draw = torch.Generator().manual_seed(0)
    scores = torch.rand(501, 7, generator=draw)
    order = torch.randperm(501, generator=draw)
    assert standardized(scores)[order].equal(standardized(scores[order]))


def test_a_class_that_looks_the_same_in_all_images_is_likely_in_none():
    log_odds = LocalViews().log_odds(torch.full((5, 2), 0.3))
    assert (log_odds < 0).all()
    assert log_odds.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"scales": ()}, "scales"), ({"scales": (0.5,)}, "scales"), ({"stride": 0}, "stride"),
     ({"floor": 0.5}, "floor")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings, match):
    with world.refused(ConfigError, match):
        LocalViews(**settings)


class Looks(Target):
    """Keeps what crops of the pool and of other images are."""

    def prepare(self, inputs):
        vectors = inputs.teachers[0]
        texts, count = 3 * vectors.vectors, len(vectors.vectors)
        crops = Crops((1, 2), 0.5, vectors.preprocessing.resizing)
        self.inputs = inputs
        self.pool = inputs.crops(crops, lambda features: pooled(features, texts, count))
        some = [inputs.pool[i] for i in inputs.indices[:3][::-1].tolist()]
        self.some = inputs.crops(crops, lambda features: pooled(features, texts, count), some)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    world.write_teacher(folder, class_names=world.DIGITS, num_base=None, logit_scale=3.0)
    return folder


def test_the_teacher_encodes_the_crops_of_every_image_of_the_pool(teacher, tmp_path, plain_of):
    target, domain = Looks(), world.digits(7, **POOL)
    student = world.make_student(teacher, target=target)
    world.fit(student, tmp_path, 1, (), domain, limit_train_batches=1)
    n = len(target.inputs.indices)
    assert target.pool.shape == (n, 10)
    # an image's scores do not depend on the others
    assert target.some.equal(target.pool[:3].flip(0))

    vectors = ClassVectors.load(teacher / CLASS_VECTORS_FILE)
    tower, tokens = plain_of("test-teacher-quickgelu"), world.write_teacher(tmp_path / "t")[1]
    image = domain.splits.open_image(target.inputs.pool[int(target.inputs.indices[0])])
    images = Crops((1, 2), 0.5, vectors.preprocessing.resizing)(image)
    features = plain.normalized(tower.image_features(images, tokens.double()))
    expected = pooled_plainly(features, (3 * vectors.vectors).tolist(), 10)
    assert target.pool[0].tolist() == pytest.approx(expected, abs=1e-4)


def data_of(table):
    """The options of data without a label."""
    return [
        "--data.class_path=kdpl.DomainDataModule",
        "--data.init_args.dataset=table",
        f"--data.init_args.root={table}",
        "--data.init_args.label_separator=;",
        "--data.init_args.shots=0",
        "--data.init_args.num_workers=0",
        "--data.init_args.batch_size=8",
    ]


@pytest.fixture(scope="module")
def fitted(table, tmp_path_factory):
    """A zero-shot teacher without labels, and the options of a student that learns from crops."""
    folder = tmp_path_factory.mktemp("local")
    config = [f"--config={CONFIGS}/trainer/cpu.yaml", *data_of(table)]
    teacher = [f"--config={CONFIGS}/teacher/{name}.yaml" for name in ("quickstart", "zero_shot")]
    assert main(["fit", *config, *teacher, f"--out={folder}/teacher"]) == 0
    student = [*config, f"--config={CONFIGS}/student/quickstart.yaml"]
    student += [f"--model.init_args.teacher={folder}/teacher", "--trainer.max_epochs=2"]
    student += ["--model.init_args.target=local_views"]
    assert main(["fit", *student, f"--out={folder}/student"]) == 0
    return folder, student


def test_a_student_without_a_label_learns_what_was_found_in_crops(fitted):
    folder, _ = fitted
    tensors, fields = read_tensors(
        folder / "student" / LOCAL_VIEWS_FILE, "targets from local views", 1, ""
    )
    assert tensors["images"].tolist() == list(range(40))
    assert fields["class_names"] == ["four", "one", "three", "two", "zero"]
    # standardised by class, so that each is found somewhere
    assert (tensors["log_odds"] > 0).any(dim=0).all()
    assert (tensors["log_odds"] < 0).any(dim=0).all()
    assert (folder / "teacher" / NEGATIVE_VECTORS_FILE).is_file()
    # no label was seen, so that there are no thresholds
    assert Classifier.load(folder / "student" / "classifier").task.thresholds is None


def test_a_fit_that_finds_the_targets_does_not_look_again(fitted, tmp_path, monkeypatch):
    folder, student = fitted
    out = tmp_path / "again"
    out.mkdir()
    shutil.copy(folder / "student" / LOCAL_VIEWS_FILE, out)
    monkeypatch.setattr(LocalViews, "_make", None)
    assert main(["fit", *student, f"--out={out}"]) == 0
    before, after = (
        (run / "classifier" / "model.safetensors").read_bytes() for run in (folder / "student", out)
    )
    assert before == after


def test_targets_of_other_settings_are_refused(fitted, tmp_path, capsys):
    folder, student = fitted
    out = tmp_path / "other"
    out.mkdir()
    shutil.copy(folder / "student" / LOCAL_VIEWS_FILE, out)
    target = {"class_path": "kdpl.multilabel.local_views.LocalViews", "init_args": {"floor": 0.1}}
    options = [*student, f"--model.init_args.target={json.dumps(target)}"]
    assert main(["fit", *options, f"--out={out}"]) == 1
    assert "was made for other settings" in capsys.readouterr().err


def test_images_of_one_label_each_are_refused(teacher, tmp_path):
    student = world.make_student(teacher, target=LocalViews())
    with world.refused(ConfigError, "several labels"):
        world.fit(student, tmp_path, 1, (), world.digits(7, **POOL))
