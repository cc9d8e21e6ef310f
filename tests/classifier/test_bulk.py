import random
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import rows_of
from zoo import odd_photo

from kdpl import Classifier
from kdpl.__main__ import main
from kdpl.classifier.sources import Item
from kdpl.data.decoding import PUBLISHED, Decoding, open_image
from kdpl.data.readers.digits import open_digit

SLOWLY = (
    "import sys, time; from kdpl.classifier.sources import Item; from kdpl.__main__ import main; plain = Item.open; "
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
def test_a_killed_command_resumes_with_each_image_once_in_order(
    classifier, pictures, tmp_path, capsys
):
    out, partial = tmp_path / "table.csv", tmp_path / "table.csv.partial"
    options = [
        "predict",
        str(classifier),
        str(pictures),
        f"--out={out}",
        "--batch-size=2",
        "--workers=1",
    ]
    for lines in (4, 20):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOWLY, *options], stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (
            partial.exists() and partial.read_bytes().count(b"\n") >= lines
        ):
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
    assert [{**row, "probability": None} for row in resumed] == [
        {**row, "probability": None} for row in at_once
    ]
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
    assert re.findall("differ in ([a-z_]+)", capsys.readouterr().err) == [
        "top_k",
        "images",
        "precision",
    ]
    assert out.read_bytes() == before


def test_files_and_shards_are_opened_as_in_training(classifier, tmp_path):
    pytest.importorskip("kdpl.shards")
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
    complete, *parts = (
        [(row["path"], row["class"]) for row in rows_of(table)] for table in tables.values()
    )
    assert [len(part) for part in parts] == [15] * 4
    assert [row for part in parts for row in part] == complete


def test_predict_and_the_classifier_predict_as_the_student_in_its_test(
    classifier, student_run, tmp_path
):
    tested, out = rows_of(student_run / "test_predictions.csv"), tmp_path / "table.csv"
    assert len(tested) == 899
    for row in tested:
        open_digit(row["source"]).save(tmp_path / f"{int(row['index']):03}.png")
    assert predict(classifier, tmp_path, out) == 0
    assert [row["class"] for row in rows_of(out)] == [row["prediction"] for row in tested]
    loaded = Classifier.load(classifier)
    with torch.inference_mode():
        logits = loaded(torch.stack([loaded.prepare(open_digit(row["source"])) for row in tested]))
    assert [loaded.class_names[label] for label in logits.argmax(dim=1)] == [
        row["prediction"] for row in tested
    ]
    saved = torch.tensor([float(row["probability"]) for row in tested])
    torch.testing.assert_close(logits.softmax(dim=1).amax(dim=1), saved, atol=2e-6, rtol=0)


# --- embeddings ---


def embeddings_of(file):
    """The rows of a file of embeddings as an array, NaN where there is none."""
    if file.suffix == ".npy":
        return np.load(file, mmap_mode="r")
    column = pytest.importorskip("pyarrow.parquet").read_table(file)["embedding"]
    # pyarrow 23 does not read lists of a fixed length back if one is null
    assert str(column.type) in ("list<element: float>", "list<item: float>")
    return np.array(
        [[np.nan] * len(column[0]) if row is None else row for row in column.to_pylist()], "f4"
    )


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
@pytest.mark.parametrize("table", ["table.csv", "table.jsonl"])
def test_embeddings_are_the_encoders_features_in_the_order_of_the_table(
    ending, table, classifier, pictures, tmp_path
):
    out, file, loaded = tmp_path / table, tmp_path / f"e{ending}", Classifier.load(classifier)
    assert predict(classifier, pictures, tmp_path / f"alone_{table}", "--batch-size=7") == 0
    assert predict(classifier, pictures, out, f"--embeddings={file}", "--batch-size=7") == 0
    assert out.read_bytes() == (tmp_path / f"alone_{table}").read_bytes()
    found, paths = embeddings_of(file), sorted(pictures.iterdir())
    assert (found.dtype, len(found)) == (np.float32, 60)
    images = [loaded.prepare(Image.open(path)) for path in paths if path.stem != "17"]
    with torch.no_grad():
        expected = loaded.encoder(torch.stack(images)).numpy()
    np.testing.assert_allclose(np.delete(found, 17, axis=0), expected, atol=1e-5)
    assert np.isnan(found[17]).all()
    if ending == ".parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(file)
        assert table["path"].to_pylist() == [str(path) for path in paths]
    assert sorted(path.name for path in tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_embeddings_of_an_interrupted_command_are_resumed(
    ending, classifier, pictures, tmp_path, monkeypatch, capsys
):
    out, file, plain, calls = tmp_path / "table.csv", tmp_path / f"e{ending}", Item.open, []

    def stops(item, decoding):
        calls.append(item)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return plain(item, decoding=decoding)

    options = (f"--embeddings={file}", "--batch-size=2", "--workers=1")
    monkeypatch.setattr(Item, "open", stops)
    assert predict(classifier, pictures, out, *options) == 130
    assert "so far are kept in" in capsys.readouterr().err
    assert not out.exists()
    assert not file.exists()
    assert predict(classifier, pictures, out) == 1
    assert "may differ in embeddings" in capsys.readouterr().err
    assert predict(classifier, pictures, out, *options) == 0
    assert "resuming after" in capsys.readouterr().err
    assert len(calls) < 70
    assert (
        predict(
            classifier, pictures, tmp_path / "once.csv", f"--embeddings={tmp_path}/once{ending}"
        )
        == 0
    )
    np.testing.assert_allclose(
        embeddings_of(file), embeddings_of(tmp_path / f"once{ending}"), atol=1e-5
    )


def test_a_command_that_ends_between_both_files_writes_them_again(
    classifier, pictures, tmp_path, monkeypatch
):
    out, file = tmp_path / "table.csv", tmp_path / "e.npy"

    def stops(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kdpl.classifier.tables.write_table", stops)
        assert predict(classifier, pictures, out, f"--embeddings={file}") == 130
    before = file.read_bytes()
    assert not out.exists()
    assert predict(classifier, pictures, out, f"--embeddings={file}") == 0
    assert len(rows_of(out)) == 60
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if "job" not in path.name) == [
        "e.npy",
        "table.csv",
    ]


def test_a_file_of_embeddings_belongs_to_one_table(classifier, pictures, tmp_path, capsys):
    out, file = tmp_path / "table.csv", tmp_path / "e.npy"
    file.write_bytes(b"precious")
    assert predict(classifier, pictures, out, f"--embeddings={file}") == 1
    assert f"{file} may differ in classifier, images" in capsys.readouterr().err
    assert file.read_bytes() == b"precious"
    file.unlink()
    assert predict(classifier, pictures, out, f"--embeddings={file}") == 0
    assert predict(classifier, pictures, tmp_path / "other.csv", f"--embeddings={file}") == 1
    assert f"{file} may differ in table" in capsys.readouterr().err
    file.unlink()
    assert predict(classifier, pictures, out, f"--embeddings={file}") == 1
    assert f"{out} is finished and {file} is missing: remove {out}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--embeddings=e.npy"], "--embeddings needs a table"),
        (["--embeddings=e.parquet", "--out=./e.parquet"], "--embeddings needs a table"),
        (
            ["--embeddings=e.csv", "--out=t.csv"],
            "--embeddings e.csv has an unknown ending, expected one of .npy, ",
        ),
    ],
)
def test_embeddings_without_a_table_or_of_an_unknown_kind_are_refused(
    options, words, classifier, pictures, capsys
):
    assert main(["predict", str(classifier), str(pictures), *options]) == 1
    assert words in capsys.readouterr().err
