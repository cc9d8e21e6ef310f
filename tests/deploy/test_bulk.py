import random
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import rows_of
from zoo import odd_photo

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.data.decoding import PUBLISHED, Decoding, open_image
from kdpl.data.readers.digits import open_digit

SLOWLY = (
    "import sys, time; from kdpl.deploy.sources import Item; from kdpl.__main__ import main; plain = Item.open; "
    "Item.open = lambda *args, **kwargs: (time.sleep(0.05), plain(*args, **kwargs))[1]; sys.exit(main(sys.argv[1:]))"
)


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


@pytest.mark.slow
def test_a_killed_command_resumes_with_each_image_once_in_order(classifier, pictures, tmp_path, capsys):
    out, partial = tmp_path / "table.csv", tmp_path / "table.csv.partial"
    options = ["predict", str(classifier), str(pictures), f"--out={out}", "--batch-size=2", "--workers=1"]
    for lines in (4, 20):
        process = subprocess.Popen([sys.executable, "-c", SLOWLY, *options], stderr=subprocess.DEVNULL)
        while process.poll() is None and not (partial.exists() and partial.read_bytes().count(b"\n") >= lines):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.2))  # noqa: S311
        process.kill()
        process.wait()
        assert not out.exists()
        assert lines <= partial.read_bytes().count(b"\n") < 60
    assert main(options) == 0
    assert "resuming after " in capsys.readouterr().err
    assert predict(classifier, pictures, tmp_path / "at_once.csv") == 0
    resumed, at_once = rows_of(out), rows_of(tmp_path / "at_once.csv")
    assert [{**row, "probability": None} for row in resumed] == [{**row, "probability": None} for row in at_once]
    assert [Path(row["path"]).stem for row in resumed] == [f"{i:02}" for i in range(60)]
    assert [row["path"] for row in resumed if row["error"]] == [str(pictures / "17.png")]
    assert not partial.exists()


def test_a_finished_table_stays_and_another_job_is_refused(classifier, pictures, tmp_path, capsys):
    out = tmp_path / "table.jsonl"
    assert predict(classifier, pictures, out) == 0
    before, changed = out.read_bytes(), out.stat().st_mtime_ns
    capsys.readouterr()
    assert predict(classifier, pictures, out, "--batch-size=3") == 0
    assert f"{out} is finished: remove it" in capsys.readouterr().err
    assert (out.read_bytes(), out.stat().st_mtime_ns) == (before, changed)
    assert predict(classifier, pictures, out, "--top-k=2") == 1
    assert predict(classifier, pictures / "18.png", out) == 1
    assert predict(classifier, pictures, out, "--precision=bf16-mixed") == 1
    assert re.findall("differ in ([a-z_]+)", capsys.readouterr().err) == ["top_k", "images", "precision"]
    assert out.read_bytes() == before


def test_files_and_shards_are_opened_as_in_training(classifier, tmp_path):
    given, photo = Classifier.load(classifier), odd_photo(tmp_path / "photo.png")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(photo, "photo.png")
    probabilities = []
    for decoding in (PUBLISHED, Decoding()):
        known = Classifier(given.encoder, given.vectors, given.logit_scale, given.clip, decoding)
        known.save(tmp_path / "known")
        (expected,) = given.predict([open_image(str(photo), decoding=decoding)])
        for source in ("photo.png", "shard.tar"):
            out = tmp_path / f"{source}{len(probabilities)}.csv"
            assert predict(tmp_path / "known", tmp_path / source, out) == 0
            (row,) = rows_of(out)
            assert (row["class"], row["error"]) == (expected[0].class_name, "")
            probabilities.append(float(row["probability"]))
            assert probabilities[-1] == pytest.approx(expected[0].probability, abs=1e-5)
    assert probabilities[0] != pytest.approx(probabilities[-1], abs=1e-3)


def test_the_parts_in_order_are_the_complete_table(classifier, pictures, tmp_path):
    tables = {part: tmp_path / f"{part[0]}.csv" for part in ("1/1", "1/4", "2/4", "3/4", "4/4")}
    tables["1/1"] = tmp_path / "all.csv"
    for part, table in tables.items():
        assert predict(classifier, pictures, table, f"--part={part}", "--batch-size=7") == 0
    complete, *parts = ([(row["path"], row["class"]) for row in rows_of(table)] for table in tables.values())
    assert [len(part) for part in parts] == [15] * 4
    assert [row for part in parts for row in part] == complete


def test_predict_and_the_classifier_predict_as_the_student_in_its_test(classifier, student_run, tmp_path):
    tested, out = rows_of(student_run / "test_predictions.csv"), tmp_path / "table.csv"
    assert len(tested) == 899
    for row in tested:
        open_digit(row["source"]).save(tmp_path / f"{int(row['index']):03}.png")
    assert predict(classifier, tmp_path, out) == 0
    assert [row["class"] for row in rows_of(out)] == [row["prediction"] for row in tested]
    loaded = Classifier.load(classifier)
    with torch.inference_mode():
        logits = loaded(torch.stack([loaded.prepare(open_digit(row["source"])) for row in tested]))
    assert [loaded.class_names[label] for label in logits.argmax(dim=1)] == [row["prediction"] for row in tested]
    saved = torch.tensor([float(row["probability"]) for row in tested])
    torch.testing.assert_close(logits.softmax(dim=1).amax(dim=1), saved, atol=2e-6, rtol=0)
