"""Classes by example images, against a plain implementation on lists of features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import noise, refused
from sklearn.datasets import load_digits
from world import exact_logits
from world import refused as refusal

from kdpl import Classifier, ClassVectors
from kdpl.__main__ import main
from kdpl.class_vectors import NameEncoder
from kdpl.classifier.examples import PoolModel
from kdpl.errors import ArtifactError, ConfigError


def plain_score(feature, pool, vectors, images, name=None):
    """Score of a feature for a class of example images: a log density, moved and scaled as documented."""
    labels = [max(range(len(vectors)), key=lambda c, x=x: x @ vectors[c]) for x in pool]
    shown = sorted(set(labels))
    means = {
        c: sum(x for x, n in zip(pool, labels, strict=True) if n == c) / labels.count(c)
        for c in shown
    }
    center = sum(means.values()) / len(shown)
    text_center = sum(vectors[c] for c in shown) / len(shown)
    covariance = sum(
        np.outer(x - means[c], x - means[c]) for x, c in zip(pool, labels, strict=True)
    ) / (len(pool) - len(shown))
    width = len(center)
    ridge = 0.1 * np.trace(covariance) / width
    precision = np.linalg.inv(covariance + ridge * np.eye(width))

    def density(x, offset):
        return offset @ precision @ (x - center) - offset @ precision @ offset / 2

    # the scale between log densities and cosines, both relative to their means over the classes
    squares = [0.0, 0.0]
    for x in pool:
        rows = ([density(x, means[c] - center) for c in shown], [x @ vectors[c] for c in shown])
        for number, row in enumerate(rows):
            squares[number] += sum((value - np.mean(row)) ** 2 for value in row)
    scale = (squares[1] / squares[0]) ** 0.5
    level = np.mean([density(center, means[c] - center) for c in shown])

    count, offset = len(images), sum(images) / len(images) - center
    if name is not None:
        texts = np.stack([vectors[c] - text_center for c in shown])
        offsets = np.stack([means[c] - center for c in shown])
        left, spread, right = np.linalg.svd(texts, full_matrices=False)
        strong = spread > 0.1 * spread[0]
        inverse = (right[strong].T / spread[strong]) @ left[:, strong].T
        predicted = (name - text_center) @ inverse @ offsets
        offset = (count * offset + 0.5 * predicted) / (count + 0.5)
        count += 0.5
    noise_of_mean = np.trace(precision @ covariance) / count
    log_density = count / (count + 1) * (density(feature, offset) + noise_of_mean / 2)
    return feature @ text_center + scale * (log_density - level)


@pytest.mark.parametrize("with_name", [False, True])
def test_scores_are_the_plain_ones(with_name):
    draw = np.random.RandomState(0)

    def unit(count, center):
        rows = center + draw.normal(size=(count, 6))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    pool, vectors, images = unit(40, 1.0), unit(4, 0.2), unit(3, 1.5)
    # one class is predicted for no image
    vectors[2] = -np.ones(6) / 6**0.5
    name, features = (unit(1, 0.3)[0] if with_name else None), unit(5, 1.0)
    model = PoolModel(torch.tensor(pool), torch.tensor(vectors))
    vector, bias = model.score(torch.tensor(images), None if name is None else torch.tensor(name))
    expected = [plain_score(x, pool, vectors, images, name) for x in features]
    assert (torch.tensor(features) @ vector + bias).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A folder of example images of two classes: digits upside down and noise."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("turned", "noise"):
        (folder / name).mkdir()
    for number, digit in enumerate(load_digits().images[:3]):
        image = Image.fromarray((digit * 15).astype("uint8")).resize((40, 40))
        image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned" / f"{number}.png")
    for number in range(2):
        noise(32, 32).rotate(90 * number).save(folder / "noise" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def loaded(classifier):
    pytest.importorskip("kdpl.confidence")  # writes the sample of the pool
    return Classifier.load(classifier)


def paths(folder):
    return sorted(folder.iterdir())


@pytest.mark.parametrize("with_names", [False, True])
def test_classes_of_a_file_are_those_that_are_added_one_by_one(
    with_names, loaded, classifier, teacher_run, examples, tmp_path, capsys
):
    out = tmp_path / "new" / "vectors.safetensors"
    options = [f"--examples={examples}", f"--classifier={classifier}", f"--out={out}"]
    names = [f"--teacher={teacher_run}"] if with_names else []
    assert main(["class-vectors", *options, *names]) == 0
    assert capsys.readouterr() == (f"class vectors of 2 classes: {out}\n", "")
    vectors = ClassVectors.load(out)
    assert vectors.class_names == ("noise", "turned")
    more = loaded.add_classes(vectors)
    named = NameEncoder.load(teacher_run).encode(["turned", "noise"]) if with_names else None
    same = loaded.add_class("noise", paths(examples / "noise"), named)
    same = same.add_class("turned", paths(examples / "turned"), named)

    # the logits: plain for the new classes, and unchanged for the others
    images = torch.stack([loaded.prepare(Image.open(path)) for path in paths(examples / "turned")])
    with torch.no_grad():
        logits = more(images)
        assert torch.equal(exact_logits(more, images)[:, :10], exact_logits(loaded, images))
        assert torch.allclose(same(images), logits, atol=1e-4)
        features = loaded.encoder(images).double().numpy()
    from kdpl.confidence.pool_sample import PoolSample

    width = loaded.vectors.vectors.shape[1]
    pool = PoolSample.load(classifier, loaded.fingerprint(), width).features.double().numpy()
    text = named.vectors[0].double().numpy() if with_names else None
    known = (pool, loaded.vectors.vectors.double().numpy(), features)
    expected = [loaded.logit_scale * plain_score(x, *known, text) for x in features]
    assert logits[:, 11].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-2)

    # a saved classifier has them, and takes names as before
    more.save(tmp_path / "more")
    read = Classifier.load(tmp_path / "more")
    assert torch.equal(read(images), logits)
    further = NameEncoder.load(teacher_run).encode(["eel"])
    extended = exact_logits(read.add_classes(further), images)
    assert torch.equal(extended[:, :12], exact_logits(more, images))
    with refusal(ArtifactError, "no sample of its pool"):
        read.add_class("crab", paths(examples / "noise"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--examples=E"], ["--classifier"]),
        (["--classifier=C", "--classes", "one", "--teacher=T"], ["--examples"]),
        (["--classes", "eel"], ["--teacher"]),
        (["--examples=E", "--classifier=C", "--classes", "one"], ["one source"]),
        (
            ["--examples=gone", "--classifier=C"],
            ["--examples gone is not a folder: check its path"],
        ),
        (["--examples=EMPTY", "--classifier=C"], ["eel", "has no images"]),
        (["--examples=BROKEN", "--classifier=C"], ["broken.png"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_wrong_arguments_are_one_line_and_nothing_is_written(
    options, words, loaded, classifier, teacher_run, examples, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("EMPTY/eel", "BROKEN/eel"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "BROKEN" / "eel" / "broken.png").write_bytes(b"no image")
    for link, target in {"E": examples, "C": classifier, "T": teacher_run}.items():
        (tmp_path / link).symlink_to(target)
    refused(capsys, main(["class-vectors", "--out=out", *options]), *words)
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused(loaded, examples, monkeypatch):
    from kdpl.confidence.pool_sample import PoolSample

    images = paths(examples / "noise")
    with refusal(ConfigError, "has no example images"):
        loaded.add_class("eel", [])
    with refusal(ConfigError, "is empty"):
        loaded.add_class(" ", images)
    with refusal(ArtifactError, "has the class 'nine' already"):
        loaded.add_class("nine", images)
    vectors = loaded.encode_examples({"eel": images})
    with refusal(ArtifactError, "another classifier encoded"):
        loaded.add_classes(replace(vectors, encoder="0" * 32))
    with refusal(ArtifactError, "another tuned teacher"):
        loaded.encode_examples({"eel": images}, replace(vectors, teacher="0" * 32))
    with monkeypatch.context() as patch:
        patch.setattr(PoolSample, "pool_features", lambda *_: loaded.vectors.vectors[[4] * 9])
        with refusal(ArtifactError, "of two classes or more"):
            loaded.add_class("eel", images)
    unread = Classifier(loaded.encoder, loaded.vectors, loaded.logit_scale, loaded.clip)
    with refusal(ArtifactError, "no sample of its pool"):
        unread.add_class("eel", images)
