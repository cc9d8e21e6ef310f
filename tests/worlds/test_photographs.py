import io
import itertools
import subprocess

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.worlds.photographs import images
from benchmarks.worlds.photographs.images import PhotoSet, write_set
from benchmarks.worlds.photographs.projections import Classifier, choose_settings, fit_projections
from kdpl.data.readers.folder import Folder

PETS = PhotoSet("somebody/pets", ("train", "more"), {"cats": "cat", "dogs": "dog"}, unlabeled=6)


def photo(seed):
    """The content of an image file of noise."""
    pixels = np.random.RandomState(seed).randint(0, 256, (12, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def test_a_set_is_a_folder_of_the_committed_images_each_once(tmp_path, monkeypatch):
    monkeypatch.setitem(images.SETS, "pets", PETS)
    clone = tmp_path / "clone"
    # two cats are the same image, and one image is of both classes
    files = {f"{('more', 'train')[n % 2]}/cats/{n}.jpg": min(n, 63) for n in range(65)}
    files |= {f"train/dogs/{number}.JPG": 1000 + number for number in range(70)}
    files |= {"train/cats/both.jpg": 4000, "train/dogs/both.jpg": 4000}
    files |= {"train/notes.txt": 5000, "train/mice/1.jpg": 5000, "else/cats/1.jpg": 5000}
    for name, seed in files.items():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(photo(seed))
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init"], ["add", "."], [*identity, "commit", "-m", "pets"]):
        subprocess.run(["git", *command], cwd=clone, check=True, capture_output=True)
    (clone / "train/cats/1.jpg").write_bytes(b"")  # not committed
    write_set("pets", clone, tmp_path / "pets")

    splits = Folder(root=str(tmp_path / "pets")).read()
    assert splits.class_names == ("cat", "dog")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (32, 8, 80)
    # 64 different cats leave four
    unlabeled = (tmp_path / "pets/unlabeled.csv").read_text()
    assert (unlabeled.count(",cat"), unlabeled.count(",dog")) == (4, 6)
    contents = [file.read_bytes() for file in (tmp_path / "pets").rglob("*.jpg")]
    assert len(set(contents)) == len(contents) == 130


@pytest.fixture
def classifier():
    draw = torch.Generator().manual_seed(0)
    texts = 0.7 + torch.randn(30, 6, generator=draw)
    rows = texts @ torch.randn(6, 9, generator=draw) + 0.3 * torch.randn(30, 9, generator=draw)
    return Classifier(rows, torch.randn(30, generator=draw), texts)


@pytest.fixture
def features():
    return 0.5 + torch.randn(40, 9, generator=torch.Generator().manual_seed(1))


def plain_cosines(classifier, mean, ridge, features, texts):
    """Cosines [N, C] by ridge regression in one space, without a root, and one image and text at a time."""
    units = [text / text.norm() for text in classifier.texts.double()]
    centre = sum(units) / len(units)
    direction = centre / centre.norm()
    without = lambda text: text - direction.dot(text) * direction  # noqa: E731
    centred = [without(unit - centre) for unit in units]
    row_mean = classifier.weight.double().mean(dim=0)
    rows = [(row - row_mean) / (row - row_mean).norm() for row in classifier.weight.double()]
    gram = ridge * torch.eye(len(centre)).double()
    cross = torch.zeros(len(centre), len(row_mean)).double()
    for text, row in zip(centred, rows, strict=True):
        gram += torch.outer(text, text)
        cross += torch.outer(text, row)
    inverse = torch.linalg.inv(gram)
    result = torch.zeros(len(features), len(texts))
    for i, image in enumerate(features.double() - mean.double()):
        seen = cross @ image
        for j, text in enumerate(texts.double()):
            direction_free = without(text)
            norms = (seen @ inverse @ seen).sqrt() * (
                direction_free @ inverse @ direction_free
            ).sqrt()
            result[i, j] = direction_free @ inverse @ seen / norms
    return result


def test_projections_are_ridge_regression_of_the_rows_on_the_texts(classifier, features):
    mean = features.mean(dim=0)
    texts = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    for ridge in (0.1, 3.0):
        expected = plain_cosines(classifier, mean, ridge, features, texts)
        cosines = fit_projections(classifier, mean, ridge).cosines(features, texts)
        torch.testing.assert_close(cosines, expected, rtol=1e-4, atol=1e-5)


def test_settings_are_those_that_best_predict_the_classifier_on_classes_that_were_left_out(
    classifier, features
):
    ridges, scales, mean = (0.01, 30.0), (6.0, 40.0), features.mean(dim=0)
    losses = dict.fromkeys(itertools.product(ridges, scales), 0.0)
    logits = features @ classifier.weight.T + classifier.bias
    for (ridge, scale), fold in itertools.product(losses, range(5)):
        held = torch.arange(30) % 5 == fold
        part = Classifier(*(rows[~held] for rows in vars(classifier).values()))
        cosines = plain_cosines(part, mean, ridge, features, classifier.texts[held])
        expected = logits.softmax(dim=1)[:, held]
        losses[ridge, scale] += F.cross_entropy(scale * cosines, expected).item()
    best = min(losses, key=losses.get)
    assert choose_settings(classifier, features, ridges, scales, folds=5) == best
