"""Targets from crops of each image, held to a plain implementation."""

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import plain
import pytest
import torch
import world
from pages import make_teacher, pages
from PIL import Image
from runs import noise

from kdpl import Classifier
from kdpl.class_vectors import ClassVectors
from kdpl.confidence.words import NEGATIVE_VECTORS_FILE
from kdpl.data.splits import Record
from kdpl.errors import ArtifactError
from kdpl.multilabel import local_views
from kdpl.multilabel.crops import Crops
from kdpl.multilabel.local_views import (
    LIMIT,
    LOCAL_VIEWS_FILE,
    SCALES,
    LocalViews,
    Views,
    choose_scales,
    log_odds_of,
    summaries_of,
)
from kdpl.runtime.artifacts import read_tensors
from kdpl.runtime.resizing import Resizing
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE

POOL = {"shots": 0, "unlabeled_share": 0.02}


def pooled_plainly(features, texts, classes):
    totals = [0.0] * classes
    for feature in features.tolist():
        cosines = [sum(a * b for a, b in zip(feature, text, strict=True)) for text in texts]
        for c, probability in enumerate(plain.softmax(torch.tensor(cosines)).tolist()[:classes]):
            totals[c] += probability**2
    return totals


def log_odds_plainly(scores):
    rows = np.log(np.maximum(np.array(scores, dtype=np.float64), 1e-6))
    standardised = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    p = np.clip(1 / (1 + np.exp(1 - 2 * standardised)), 0.01, 0.99)
    return torch.from_numpy(np.log(p / (1 - p)))


def edges_plainly(image):
    """Magnitudes of the gradient of a grey image, by pixel."""
    grey = np.array(image.convert("L"), dtype=float)
    height, width = grey.shape
    edges = np.zeros_like(grey)
    for y, x in np.ndindex(height, width):
        up, down = max(y - 1, 0), min(y + 1, height - 1)
        left, right = max(x - 1, 0), min(x + 1, width - 1)
        vertical = (grey[down, x] - grey[up, x]) / (down - up)
        horizontal = (grey[y, right] - grey[y, left]) / (right - left)
        edges[y, x] = math.hypot(vertical, horizontal)
    return edges


def boxes_plainly(image, scales, count):
    """The boxes of an image whose shorter edge is 64, by the sums over their pixels."""
    edges, candidates = edges_plainly(image), []
    for edge in (round(64 / scale) for scale in scales if scale != 1):
        steps = [math.ceil((n - edge) / (edge / 6)) for n in edges.shape]
        border = max(1, round(0.06 * edge))
        for i, j in np.ndindex(steps[0] + 1, steps[1] + 1):
            top, left = (
                round(k * (n - edge) / max(s, 1))
                for k, n, s in zip((i, j), edges.shape, steps, strict=True)
            )
            inner, outer = (
                edges[max(top + b, 0) : top + edge - b, max(left + b, 0) : left + edge - b].sum()
                for b in (border, -border)
            )
            candidates.append(((3 * inner - 2 * outer) / edge**1.5, (left, top, edge)))
    chosen = []
    for _, (left, top, edge) in sorted(candidates, key=lambda candidate: -candidate[0]):
        apart = True
        for x, y, other in chosen:
            wide = max(0, min(left + edge, x + other) - max(left, x))
            high = max(0, min(top + edge, y + other) - max(top, y))
            apart = apart and wide * high <= 0.5 * (edge**2 + other**2 - wide * high)
        if apart and len(chosen) < count:
            chosen.append((left, top, edge))
    return chosen


@pytest.mark.parametrize("size", [(96, 64), (64, 80)])
def test_boxes_are_those_of_a_plain_implementation(size):
    # coarse patches, enlarged smoothly
    image = noise(*(edge // 8 for edge in size)).resize(size, Image.Resampling.BICUBIC)
    boxes = Crops((3, 1, 2.5), 6, Resizing(32)).boxes(image)
    assert boxes.tolist() == [list(box) for box in boxes_plainly(image, (3, 1, 2.5), 6)]


def test_boxes_do_not_depend_on_the_resolution_and_find_what_stands_alone():
    image = Image.new("RGB", (64, 64))
    for left, top in ((7, 10), (42, 32)):
        image.paste((255, 255, 255), (left, top, left + 12, top + 12))
    crops = Crops((1, 3.5, 4), 2, Resizing(32))
    boxes = crops.boxes(image)
    large = image.resize((256, 256), Image.Resampling.NEAREST)
    assert crops.boxes(large).tolist() == (4 * boxes).tolist()
    middles = sorted((boxes[:, :2] + boxes[:, 2:] / 2).tolist())
    assert np.allclose(middles, [[13, 16], [48, 38]], atol=2)


@pytest.mark.parametrize("size", [(33, 120), (1, 1), (5000, 3)])
def test_crops_lie_within_the_image_whatever_its_shape(size):
    crops = Crops((1, 2.5, 3), 3, Resizing(32))
    made = crops(Image.new("RGB", size, (255, 255, 255)))
    assert made.shape == (1 + 3 * 8, 3, 32, 32)
    # nothing from beyond the border, which would be black
    assert (made == 255).all()


def test_views_of_a_box_are_resized_as_the_teacher_takes_images(monkeypatch):
    image = noise(96, 64)
    monkeypatch.setattr(
        Crops, "boxes", lambda *_: np.array([[30.0, 20.0, 20.0], [0.0, 44.0, 20.0]])
    )
    made = Crops((2,), 2, Resizing(20))(image)
    assert made.shape == (2 * 8, 3, 20, 20)
    assert made.dtype == torch.uint8
    # the second view is the box itself, which needs no resizing, and the last is 1 pixel larger
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert made[1].equal(pixels[:, 20:40, 30:50])
    assert made[9].equal(pixels[:, 44:64, :20])


def test_scores_and_log_odds_are_those_of_a_plain_implementation():
    draw = torch.Generator().manual_seed(0)
    texts = 5 * torch.nn.functional.normalize(torch.randn(6, 8, generator=draw), dim=1)
    images = torch.nn.functional.normalize(torch.randn(12, 9, 8, generator=draw), dim=2)
    scores = torch.stack([Views(texts, 4).scores(features) for features in images])
    expected = [pooled_plainly(features, texts.tolist(), 4) for features in images]
    assert torch.allclose(scores.double(), torch.tensor(expected).double(), atol=1e-5)

    plainly = log_odds_plainly(expected)
    assert torch.allclose(log_odds_of(scores).double(), plainly, atol=1e-3)
    assert log_odds_of(100 * (scores > scores.mean(dim=0))).max() <= math.log(99) + 1e-6
    # the order of images does not matter to the last bit
    scores, order = torch.rand(501, 7, generator=draw), torch.randperm(501, generator=draw)
    assert log_odds_of(scores)[order].equal(log_odds_of(scores[order]))
    # a class that looks the same in all images is likely in none
    log_odds = log_odds_of(torch.full((5, 2), 0.3))
    assert (log_odds < 0).all()
    assert log_odds.isfinite().all()


def information_plainly(crops, texts):
    """Mutual information of crop and prediction, in nats."""
    predicted = [plain.softmax(texts @ crop).tolist() for crop in crops]
    mean = [sum(column) / len(predicted) for column in zip(*predicted, strict=True)]
    entropies = [-sum(p * math.log(p) for p in row) for row in (mean, *predicted)]
    return entropies[0] - sum(entropies[1:]) / len(predicted)


@pytest.mark.parametrize("sure", range(4))
def test_scales_are_chosen_by_the_information_of_crops_as_computed_plainly(sure, capsys):
    # five images of three crops each, of which those of some scales are less ambiguous
    draw = torch.Generator().manual_seed(sure)
    texts = 5 * torch.nn.functional.normalize(torch.randn(6, 8, generator=draw), dim=1)
    crops = {
        scales: torch.randn(5, 3, 8, generator=draw) * (1.5 if i == sure else 0.4)
        for i, scales in enumerate(SCALES)
    }
    views = Views(texts, 4)
    chosen = choose_scales(lambda scales: torch.stack([*map(views.certainty, crops[scales])]))
    expected = {s: information_plainly(rows.flatten(0, 1), texts) for s, rows in crops.items()}
    assert chosen == max(expected, key=expected.get) == SCALES[sure]
    said = "".join(capsys.readouterr()).replace("\n", " ")
    assert f"scales of boxes: {list(chosen)}" in said
    for scales, value in expected.items():
        assert f"{value:.2f} with {list(scales)}" in said


@pytest.mark.parametrize(("factor", "other"), [(1.3, False), (1.4, True)])
def test_the_default_scales_stay_unless_others_are_clearly_better(factor, other):
    # mean probabilities and mean entropy: the information of the default is 0.3 nats
    def certainty(scales):
        information = {SCALES[-1]: 0.3, SCALES[0]: 0.3 * factor}.get(scales, 0.1)
        return torch.tensor([[0.25] * 4 + [math.log(4) - information]] * 2)

    assert choose_scales(certainty) == SCALES[0 if other else -1]


def test_a_run_names_the_scales_that_it_chose(fitted, again, table, capsys):
    teacher, folder = again
    (folder / LOCAL_VIEWS_FILE).unlink()
    fit_student(teacher, folder, table, target=LocalViews(scales="auto"))
    _, fields = read_tensors(folder / LOCAL_VIEWS_FILE, "targets from local views", 3, "")
    assert fields["made_from"]["target"]["scales"] == "auto"
    assert tuple(fields["scales"]) in SCALES
    assert f"scales of boxes: {fields['scales']}" in "".join(capsys.readouterr()).replace("\n", " ")


class Looks(LocalViews):
    """Keeps the features of crops of the pool and of other images."""

    def gather(self, inputs):
        crops = Crops((1, 2), 3, inputs.vectors.preprocessing.resizing)
        self.inputs = inputs
        self.pool = summaries_of(inputs, crops, torch.flatten)
        some = [inputs.pool.images[i] for i in inputs.pool.targeted[:3][::-1].tolist()]
        self.some = summaries_of(inputs, crops, torch.flatten, some)
        return super().gather(inputs)

    @classmethod
    def require_task(cls, task):
        """Accept images of one class each."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    world.write_teacher(folder, class_names=world.DIGITS, num_base=None, logit_scale=3.0)
    return folder


def test_the_teacher_encodes_the_crops_of_every_image_of_the_pool(teacher, tmp_path, plain_of):
    target, domain = Looks(), world.digits(7, **POOL)
    student = world.make_student(teacher, target=target)
    world.fit(student, tmp_path, 1, (), domain, limit_train_batches=1)
    n = len(target.inputs.pool.targeted)
    assert target.pool.shape == (n, (1 + 3) * 24)
    # an image's features do not depend on the others
    assert target.some.equal(target.pool[:3].flip(0))

    vectors = ClassVectors.load(teacher / CLASS_VECTORS_FILE)
    tower, tokens = plain_of("test-teacher-quickgelu"), world.write_teacher(tmp_path / "t")[1]
    image = domain.splits.open_image(domain.pool.images[int(target.inputs.pool.targeted[0])])
    images = Crops((1, 2), 3, vectors.preprocessing.resizing)(image)
    views = plain.normalized(tower.image_features(images, tokens.double()))
    means = [views[0], *(views[1 + 8 * box : 9 + 8 * box].mean(dim=0) for box in range(3))]
    features = torch.cat([mean / mean.norm() for mean in means])
    assert torch.allclose(target.pool[0].double(), features, atol=1e-4)


@pytest.fixture(scope="module")
def fitted(table, tmp_path_factory):
    """A zero-shot teacher without labels, and a student that learned from crops."""
    folder = tmp_path_factory.mktemp("local")
    data = pages(table, shots=0)
    world.fit(make_teacher(0), folder / "teacher", 0, domain=data, limit_train_batches=0)
    fit_student(folder / "teacher", folder / "student", table)
    return folder


def fit_student(teacher, folder, table, target=LocalViews()):  # noqa: B008
    student = world.make_student(teacher, target=target)
    world.fit(student, folder, domain=pages(table, shots=0), limit_train_batches=2)


def test_a_student_without_a_label_learns_what_images_are_most_like_by_their_crops(fitted):
    tensors, fields = read_tensors(
        fitted / "student" / LOCAL_VIEWS_FILE, "targets from local views", 3, ""
    )
    assert tensors["images"].tolist() == list(range(40))
    assert fields["made_from"]["target"]["count"] == 8
    # standardised by class, so that each is found somewhere
    assert (tensors["log_odds"] > 0).any(dim=0).all()
    assert (tensors["log_odds"] < 0).any(dim=0).all()
    assert (fitted / "teacher" / NEGATIVE_VECTORS_FILE).is_file()
    vectors = ClassVectors.load(fitted / "teacher" / CLASS_VECTORS_FILE)
    assert vectors.scales == (1.0,) * 5
    # classes start at different values, and so do the thresholds, which are of unlabelled images
    assert len({*vectors.biases, 0.0}) == 6
    thresholds = Classifier.load(fitted / "student" / "classifier").task.thresholds
    assert len({*thresholds}) == 5
    assert all(0 < threshold < 1 for threshold in thresholds)


@pytest.fixture
def again(fitted, tmp_path):
    """A copy of the teacher, and a folder for a student that has the targets of the other one."""
    shutil.copytree(fitted / "teacher", tmp_path / "teacher")
    (tmp_path / "student").mkdir()
    shutil.copy(fitted / "student" / LOCAL_VIEWS_FILE, tmp_path / "student")
    return tmp_path / "teacher", tmp_path / "student"


def test_a_fit_that_finds_the_targets_does_not_look_again(fitted, again, table, monkeypatch):
    monkeypatch.setattr(LocalViews, "_make", None)
    fit_student(*again, table)
    before, after = (
        (folder / "classifier" / "model.safetensors").read_bytes()
        for folder in (fitted / "student", again[1])
    )
    assert before == after


def test_targets_of_other_settings_or_words_for_other_things_are_refused(again, table):
    with world.refused(ArtifactError, r"was made from something else \(target"):
        fit_student(*again, table, target=LocalViews(count=5))
    (again[0] / NEGATIVE_VECTORS_FILE).unlink()
    with world.refused(ArtifactError, r"was made from something else \(negative vectors"):
        fit_student(*again, table)


@pytest.fixture(scope="module")
def labelled():
    """Text vectors of 3 classes and 2 other things, the crops of 8 images, and their labels of 2 classes."""
    draw = torch.Generator().manual_seed(1)
    texts = 4 * torch.nn.functional.normalize(torch.randn(5, 6, generator=draw), dim=1)
    images = torch.nn.functional.normalize(torch.randn(8, 7, 6, generator=draw), dim=2)
    return texts, images, torch.rand(8, 2, generator=draw) < 0.5


def tuned_views(texts, images, has):
    views = Views(texts, 3)
    return views.tuned(torch.stack([views.best(features) for features in images]), has)


def test_the_probe_minimises_the_log_loss_of_the_surest_crops(labelled):
    texts, images, has = labelled
    tuned = tuned_views(*labelled)

    rows, shown = [], []
    for features, labels in zip(images, has.tolist(), strict=True):
        for c, label in enumerate(labels):
            sure = [plain.softmax(texts @ feature)[c].item() for feature in features]
            rows.append(features[sure.index(max(sure))].double())
            shown.append(c if label else 3)
    rows = torch.stack(rows)
    mean, spread = rows.mean(dim=0), rows.std(dim=0) + 1e-6
    # back to standardised features, in which the weights are penalised; class 2 has no label
    kept = [0, 1, 3]
    weight = (tuned.probe.weight.double() * spread[:, None])[:, kept].requires_grad_()
    bias = (tuned.probe.bias.double() + mean @ tuned.probe.weight.double())[kept].requires_grad_()
    logits = (rows - mean) / spread @ weight + bias
    loss = (
        sum(logits[i].logsumexp(dim=0) - logits[i, kept.index(y)] for i, y in enumerate(shown))
        * 30
        / rows.shape[1]
        + 0.5 * weight.square().sum()
    )
    gradients = torch.autograd.grad(loss, [weight, bias])
    assert max(gradient.abs().max() for gradient in gradients) < 0.05
    assert not tuned.probe.weight[:, 2].any()


def test_with_a_probe_predictions_are_those_of_both(labelled):
    texts, images, _ = labelled
    tuned = tuned_views(*labelled)
    for feature, predicted in zip(images[0], tuned.probabilities(images[0]).tolist(), strict=True):
        words = (texts @ feature).tolist()
        nothing = math.log(sum(math.exp(word) for word in words[3:]))
        text = plain.softmax(torch.tensor([*words[:3], nothing])).tolist()
        probe = plain.softmax(feature @ tuned.probe.weight + tuned.probe.bias).tolist()
        both = [a**0.25 * b for a, b in zip(text, probe, strict=True)]
        assert predicted == pytest.approx([p / sum(both) for p in both[:3]], abs=1e-5)


@pytest.fixture
def given(monkeypatch):
    """The features of crops are given with the inputs, instead of a teacher's."""

    def summaries(inputs, _, summarize, sources=None):
        return torch.stack([summarize(inputs.crops[int(i)]) for i in sources or inputs.pool.images])

    monkeypatch.setattr(local_views, "summaries_of", summaries)


def inputs_of(texts, images, records, num_base=2):
    """Inputs of a target for eight images of three classes."""
    names = [str(i) for i in range(8)]
    vectors = SimpleNamespace(
        vectors=texts[:3], logit_scale=1.0, preprocessing=SimpleNamespace(resizing=Resizing(32))
    )
    return SimpleNamespace(
        vectors=vectors, teacher=SimpleNamespace(folder=Path("/nowhere")), labeled=records,
        pool=SimpleNamespace(images=names, targeted=np.arange(8)), crops=images, device="cpu",
        labels=SimpleNamespace(tuning_class_names=("a", "b", "c")[:num_base]),
    )  # fmt: skip


def records_of(has, rows):
    return [Record(str(i), tuple(torch.nonzero(has[i]).flatten().tolist())) for i in rows]


@pytest.mark.usefixtures("given")
def test_labelled_images_of_the_pool_have_their_labels_and_novel_classes_what_is_found(labelled):
    texts, images, has = labelled
    inputs = inputs_of(texts, images, records_of(has, (5, 3)))
    log_odds, _ = LocalViews()._make(inputs, texts[:0])
    for image in (3, 5):
        signs = torch.where(has[image], LIMIT, -LIMIT)
        assert torch.allclose(log_odds[image, :2], signs)
    tuned = tuned_views(texts[:3], images[[5, 3]], has[[5, 3]])
    expected = log_odds_of(torch.stack([tuned.scores(features) for features in images]))
    assert torch.allclose(log_odds[:, 2], expected[:, 2])


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize(
    ("num_base", "labels"),
    [(2, [(0,), (0,)]), (2, [(), ()]), (1, [(0,), ()])],
)
def test_labels_that_tell_nothing_apart_leave_the_texts_alone(labelled, capsys, num_base, labels):
    texts, images, _ = labelled
    records = [Record(str(i), label) for i, label in zip((5, 2), labels, strict=True)]
    log_odds, _ = LocalViews()._make(inputs_of(texts, images, records, num_base), texts[:0])
    assert "too alike to learn" in "".join(capsys.readouterr())
    views = Views(texts[:3], 3)
    expected = log_odds_of(torch.stack([views.scores(features) for features in images]))
    unlabelled = [0, 1, 3, 4, 6, 7]
    assert torch.allclose(log_odds[unlabelled], expected[unlabelled])


@pytest.mark.usefixtures("given")
def test_the_probe_is_fitted_to_labelled_images_from_all_over_the_list(labelled, monkeypatch):
    texts, images, has = labelled
    monkeypatch.setattr(local_views, "_MOST_LABELED", 4)
    many, _ = LocalViews()._make(inputs_of(texts, images, records_of(has, range(8))), texts[:0])
    few, _ = LocalViews()._make(
        inputs_of(texts, images, records_of(has, range(0, 8, 2))), texts[:0]
    )
    # of class 2 no label tells
    assert many[:, 2].equal(few[:, 2])
