"""One row for each group of images: ``predict --group``."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from runs import refused
from sklearn.datasets import load_digits

from kdpl.__main__ import main
from kdpl.classifier import Classifier, PredictOptions
from kdpl.classifier.bulk import BulkPrediction
from kdpl.tasks import DecisionRule


@pytest.fixture
def frames(tmp_path):
    """Two folders of frames, and one with a broken file."""
    images = load_digits().images
    for name, numbers in {"one": (0, 1, 2), "two": (3, 4)}.items():
        folder = tmp_path / "frames" / name
        folder.mkdir(parents=True)
        for number in numbers:
            image = Image.fromarray((images[number] * 15).astype("uint8"))
            image.resize((40, 40)).save(folder / f"{number}.png")
    (tmp_path / "frames" / "three").mkdir()
    (tmp_path / "frames" / "three" / "broken.png").write_text("no image")
    return tmp_path / "frames"


def mean_of(classifier, images):
    """The mean probabilities by a plain loop over the images."""
    loaded = Classifier.load(classifier)
    rows = []
    for (*predicted,) in loaded.predict(images, top_k=len(loaded.class_names)):
        of = {p.class_name: p.probability for p in predicted}
        rows.append([of[name] for name in loaded.class_names])
    return dict(zip(loaded.class_names, np.mean(rows, axis=0), strict=True))


def table_of(path):
    return list(csv.DictReader(path.open(encoding="utf-8")))


def test_a_folder_is_predicted_by_the_mean_of_its_images(classifier, frames, tmp_path):
    out = tmp_path / "groups.csv"
    arguments = ["predict", str(classifier), str(frames), "--group=folder", "--top-k=2"]
    assert main([*arguments, f"--out={out}"]) == 0
    rows = {row["group"]: row for row in table_of(out)}
    assert list(rows) == [str(frames / name) for name in ("one", "three", "two")]
    for name in ("one", "two"):
        images = sorted(map(str, (frames / name).iterdir()))
        mean, row = mean_of(classifier, images), rows[str(frames / name)]
        ranked = sorted(mean, key=mean.get, reverse=True)
        assert (row["images"], row["error"]) == (str(len(images)), "")
        assert [row["class"], row["class_2"]] == ranked[:2]
        assert float(row["probability"]) == pytest.approx(mean[ranked[0]], abs=1e-4)
    broken = rows[str(frames / "three")]
    assert (broken["images"], broken["class"]) == ("0", "")
    assert broken["error"] == "none of its images can be read"


def test_a_column_of_a_table_names_the_groups(classifier, frames, tmp_path):
    one, two = (sorted(map(str, (frames / name).iterdir())) for name in ("one", "two"))
    table, out = tmp_path / "images.csv", tmp_path / "groups.jsonl"
    rows = [("image", "video"), (one[0], "a"), (two[0], "a"), (one[1], "")]
    table.write_text("\n".join(map(",".join, rows)))
    arguments = ["predict", str(classifier), f"--list={table}", "--group=video"]
    assert main([*arguments, f"--out={out}"]) == 0
    first, single = map(json.loads, out.read_text().splitlines())
    mean = mean_of(classifier, [one[0], two[0]])
    assert (first["group"], first["images"]) == ("a", 2)
    assert first["class"] == max(mean, key=mean.get)
    assert (single["group"], single["images"]) == (one[1], 1)


def test_the_rule_decides_on_the_group(classifier, frames, tmp_path):
    images = sorted(map(str, (frames / "one").iterdir()))
    least, loaded = max(mean_of(classifier, images).values()), Classifier.load(classifier)
    for shift, rejected in ((-1e-4, False), (1e-4, True)):
        out = tmp_path / f"{rejected}.csv"
        options = PredictOptions(rule=DecisionRule(threshold=least + shift))
        BulkPrediction(loaded, images, options).grouped(None).write(out)
        (row,) = table_of(out)
        assert (row["class"] == "") == rejected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--group=folder"], "give --out"),
        (["--group=folder", "--embeddings", "--out=t.jsonl"], "leave out --embeddings"),
        (["--group=video", "--out=t.csv"], "give --list TABLE.csv, or --group folder"),
        (["--group=video", "--list=images.csv", "--out=t.csv"], "images.csv is no table"),
    ],
)
def test_what_cannot_be_grouped_is_refused(
    options, words, classifier, frames, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images.csv").write_text("image,label\na.png,cat\n")
    refused(capsys, main(["predict", str(classifier), str(frames), *options]), words)
    assert not list(tmp_path.glob("t.*"))
