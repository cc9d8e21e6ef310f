import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import error_line, interrupt_predict, rows_of
from zoo import odd_photo

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.classifier import PredictOptions
from kdpl.classifier.bulk import BulkPrediction
from kdpl.classifier.companion import Companion
from kdpl.data.decoding import PUBLISHED, Decoding, open_image
from kdpl.data.readers.digits import open_digit
from kdpl.runtime.origin import difference
from kdpl.tasks import DecisionRule


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Sixty pictures of different colours, one of them damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(60):
        Image.new("RGB", (12, 10), (4 * i, 255 - 4 * i, 9 * i % 256)).save(folder / f"{i:02}.png")
    (folder / "17.png").write_bytes(b"no image")
    return folder


def predict(classifier, pictures, out, *more):
    return main(["predict", str(classifier), str(pictures), f"--out={out}", *more])


def test_a_finished_table_stays(classifier, pictures, tmp_path, capsys):
    out = tmp_path / "table.jsonl"
    assert predict(classifier, pictures, out) == 0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    before, changed = out.read_bytes(), out.stat().st_mtime_ns
    assert predict(classifier, pictures, out) == 1
    assert f"--out {out} exists already" in capsys.readouterr().err
    assert (out.read_bytes(), out.stat().st_mtime_ns) == (before, changed)


def test_an_interrupted_table_is_resumed_by_the_same_job_alone(
    classifier, pictures, tmp_path, monkeypatch, capsys
):
    out, calls = tmp_path / "table.jsonl", interrupt_predict(monkeypatch, at=30)
    so_far = tmp_path / "table.jsonl.partial"
    assert predict(classifier, pictures, out, "--batch-size=2", "--workers=1") == 130
    assert f"the predictions so far are kept in {so_far}" in capsys.readouterr().err
    with so_far.open("a") as file:
        file.write('{"path": "half')
    before = so_far.read_bytes()
    assert not out.exists()
    for words, images, *options in (
        ("columns is", pictures, "--top-k=2"),
        ("images is", pictures / "18.png"),
        ("precision is", pictures, "--precision=bf16-mixed"),
    ):
        assert predict(classifier, images, out, *options) == 1
        error_line(capsys, f"{so_far} was made from something else ({words}")
        assert before.startswith(so_far.read_bytes())
    # how fast it is may change
    assert predict(classifier, pictures, out, "--batch-size=3") == 0
    assert "resuming after" in capsys.readouterr().err
    assert len(calls) < 70
    numbers = [Path(json.loads(line)["path"]).stem for line in out.open()]
    assert numbers == [f"{i:02}" for i in range(60)]


@pytest.mark.parametrize("change", ["content", "time", "later", "appears", "nothing"])
def test_rows_of_files_that_changed_meanwhile_are_predicted_again(
    change, classifier, tmp_path, monkeypatch, capsys
):
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        Image.new("RGB", (12, 10), (20 * i, 255 - 20 * i, 9)).save(path)
    paths[5].rename(tmp_path / "missing")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(paths[0], "a.png")
    (tmp_path / "list").write_text(
        "".join(f"{path}\n" for path in [tmp_path / "shard.tar", *paths])
    )
    out, options = (
        tmp_path / "table.csv",
        ("--batch-size=2", "--workers=1", f"--list={tmp_path}/list"),
    )

    def predict():
        return main(["predict", str(classifier), f"--out={out}", *options])

    with monkeypatch.context() as patch:
        opened = interrupt_predict(patch, at=11)
        assert predict() == 130
        rows = (tmp_path / "table.csv.partial").read_text().count("\n") - 1
    assert 8 <= rows < len(opened)
    images = {"content": 4, "time": 4, "later": 11, "appears": 5}
    if change == "time":
        os.utime(paths[4], (0, 2e9))
    elif change == "appears":
        (tmp_path / "missing").rename(paths[5])
    elif change != "nothing":
        odd_photo(paths[images[change]])
    capsys.readouterr()
    assert predict() == 0
    # whole batches up to the first that changed, where the shard is the first row
    kept = {"content": 4, "time": 4, "appears": 6}.get(change, rows)
    assert f"resuming after {kept} images" in capsys.readouterr().err
    table = rows_of(out)
    out.unlink()
    assert predict() == 0
    assert rows_of(out) == table
    assert "stamp" not in table[0]


def parts_of(classifier):
    return classifier.encoder, classifier.vectors, classifier.logit_scale, classifier.clip


class Scores(Companion):
    """A score of each image, as a companion may keep it beside a classifier."""

    def __init__(self, value):
        self.value = value

    def save(self, folder, classifier):
        (folder / "score").write_text(f"{self.value} {classifier}")

    @classmethod
    def read(cls, folder, classifier, width):
        return cls(float((folder / "score").read_text().partition(" ")[0]))


def test_what_rows_are_made_from_names_all_that_decides_them(classifier, pictures):
    loaded = Classifier.load(classifier)
    loaded.companions = {"scores": Scores(0.5)}

    def origin(classifier=loaded, precision="32-true", **rule):
        options = PredictOptions(1, precision=precision, rule=DecisionRule(**rule))
        return BulkPrediction(classifier, [str(pictures / "00.png")], options)._origin()

    plain = origin()
    assert difference(plain, origin()) is None
    for name, change in (
        ("rule.temperature", {"temperature": 2.0}),
        ("rule.threshold", {"threshold": 0.5}),
        ("rule.set_threshold", {"set_threshold": 0.1}),
        ("precision", {"precision": "bf16-mixed"}),
    ):
        assert difference(plain, origin(**change))[0] in (name, "columns")

    # files of further scores matter where a column is made of them
    scored = origin(scores=("unknown",))
    loaded.companions = {"scores": Scores(0.6)}
    assert difference(plain, origin()) is None
    assert difference(scored, origin(scores=("unknown",)))[0] == "files of scores"
    parts = parts_of(loaded)
    changed = {
        "logit scale": Classifier(*parts[:2], 7.0, parts[3]),
        "decoding.background": Classifier(*parts, Decoding((0, 0, 0))),
    }
    for name, other in changed.items():
        assert difference(origin(Classifier(*parts)), origin(other))[0] == name
    several = pytest.importorskip("kdpl.multilabel.task").MultiLabel
    first, second = (
        origin(Classifier(*parts, task=several([threshold] * 10))) for threshold in (0.4, 0.9)
    )
    assert difference(first, second)[0] == "task.thresholds"


def test_files_and_shards_are_opened_as_in_training(classifier, tmp_path):
    given, photo = Classifier.load(classifier), odd_photo(tmp_path / "photo.png")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(photo, "photo.png")
    probabilities = []
    for decoding in (PUBLISHED, Decoding()):
        Classifier(*parts_of(given), decoding).save(tmp_path / "saved")
        (expected,) = given.predict([open_image(str(photo), decoding=decoding)])
        for source in ("photo.png", "shard.tar"):
            out = tmp_path / f"{source}{len(probabilities)}.csv"
            assert predict(tmp_path / "saved", tmp_path / source, out) == 0
            (row,) = rows_of(out)
            assert (row["class"], row["error"]) == (expected[0].class_name, "")
            probabilities.append(float(row["probability"]))
            assert probabilities[-1] == pytest.approx(expected[0].probability, abs=1e-5)
    assert probabilities[0] != pytest.approx(probabilities[-1], abs=1e-3)


def test_predict_and_the_classifier_predict_as_the_student_in_its_test(
    classifier, student_run, tmp_path
):
    tested, out = rows_of(student_run / "test_predictions.csv"), tmp_path / "table.csv"
    assert len(tested) == 899
    tested = tested[::9]
    for row in tested:
        open_digit(row["source"]).save(tmp_path / f"{int(row['index']):03}.png")
    expected = [row["prediction"] for row in tested]
    assert predict(classifier, tmp_path, out) == 0
    assert [row["class"] for row in rows_of(out)] == expected
    loaded = Classifier.load(classifier)
    images = torch.stack([loaded.prepare(open_digit(row["source"])) for row in tested])
    with torch.inference_mode():
        top, labels = loaded(images).softmax(dim=1).max(dim=1)
    assert [loaded.class_names[label] for label in labels] == expected
    saved = torch.tensor([float(row["probability"]) for row in tested])
    torch.testing.assert_close(top, saved, atol=2e-6, rtol=0)


def embeddings_of(file):
    """The embeddings in a table as lists, None where there is none."""
    if file.suffix == ".jsonl":
        return [json.loads(line)["embedding"] for line in file.open()]
    column = pytest.importorskip("pyarrow.parquet").read_table(file)["embedding"]
    # pyarrow 23 does not read lists of a fixed length back if one is null
    assert str(column.type) in ("list<element: float>", "list<item: float>")
    return column.to_pylist()


@pytest.mark.parametrize("name", ["table.jsonl", "table.parquet"])
def test_embeddings_are_the_encoders_features(
    name, classifier, pictures, tmp_path, monkeypatch, capsys
):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    out, loaded = tmp_path / name, Classifier.load(classifier)
    options = ("--embeddings", "--batch-size=7", "--workers=1")
    with monkeypatch.context() as patch:
        interrupt_predict(patch, at=50)
        assert predict(classifier, pictures, out, *options) == 130
    assert predict(classifier, pictures, out, *options) == 0
    assert "resuming after" in capsys.readouterr().err
    embeddings, paths = embeddings_of(out), sorted(pictures.iterdir())
    assert embeddings.pop(17) is None
    images = [loaded.prepare(Image.open(path)) for path in paths if path.stem != "17"]
    with torch.no_grad():
        expected = loaded.encoder(torch.stack(images)).numpy()
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [([], "--embeddings needs a table"), (["--out=t.csv"], "--out t.csv has an unknown ending")],
)
def test_embeddings_without_a_table_or_in_csv_are_refused(
    options, words, classifier, pictures, capsys
):
    assert main(["predict", str(classifier), str(pictures), "--embeddings", *options]) == 1
    error_line(capsys, words)
