import csv
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from runs import CONFIGS, SHORT, image_folder, rows_of

from kdpl.__main__ import main


def picture(path, *colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), colour).save(path)


def plain_folders(root, classes=("cat", "dog"), images=8):
    """``<class>/…`` without splits, each image of another colour."""
    for number, name in enumerate(classes):
        for i in range(images):
            picture(root / name / f"{i}.png", 60 * number, 20 * i, 9)
    return root


def init(folder, out, *more):
    return main(["init", str(folder), f"--out={out}", "--workers=1", *more])


def listed(out):
    return [(Path(row["image"]).name, row["label"], row["split"]) for row in rows_of(out / "images.csv")]


def settings(out):
    return yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))["data"]["init_args"]


def test_splits_that_are_there_are_kept(tmp_path, capsys):
    root = image_folder(tmp_path / "pets", splits=("train", "val", "test"), images=5)
    # the helper's val and test images have the same bytes
    shutil.rmtree(root / "val")
    picture(root / "unlabeled" / "deep" / "x.png", 1, 2, 3)
    assert init(root, tmp_path / "out") == 0
    rows = listed(tmp_path / "out")
    assert len(rows) == 21
    assert rows.count(("0.png", "cat", "train")) == rows.count(("0.png", "cat", "test")) == 1
    assert ("x.png", "", "train") in rows
    assert settings(tmp_path / "out")["shots"] == 5
    out = capsys.readouterr().out
    assert "2 classes, 21 images of 16 to 40 pixels" in out
    assert "unlabelled: 1" in out


def test_without_test_images_a_quarter_of_each_class_is_held_out_and_said_so(tmp_path, capsys):
    root = plain_folders(tmp_path / "pets")
    assert init(root, tmp_path / "out") == 0
    rows = listed(tmp_path / "out")
    for name in ("cat", "dog"):
        assert sum(row[1:] == (name, "test") for row in rows) == 2
        assert sum(row[1:] == (name, "train") for row in rows) == 6
    assert "test: 4, a quarter of each class, held out by chance" in capsys.readouterr().out
    assert init(root, tmp_path / "again") == 0
    assert listed(tmp_path / "again") == rows


def test_bad_images_and_copies_are_named_and_left_out(tmp_path, capsys):
    root = image_folder(tmp_path / "pets", images=5)
    (root / "train/cat/torn.png").write_bytes((root / "train/cat/0.png").read_bytes()[:40])
    shutil.copy(root / "test/dog/1.png", root / "train/dog/leak.png")
    assert init(root, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "torn.png cannot be read" in out
    assert f"leak.png is a copy of {root.absolute()}/test/dog/1.png (test)" in out
    names = [row[0] for row in listed(tmp_path / "out")]
    assert "torn.png" not in names
    assert "leak.png" not in names
    assert len(names) == 20


def test_poor_classes_are_pointed_out_and_shots_follow_the_smallest(tmp_path, capsys):
    root = plain_folders(tmp_path / "pets", images=8)
    for i in range(3):
        picture(root / "eel" / f"{i}.png", 200, 9 * i, 0)
    assert init(root, tmp_path / "out") == 0
    assert "fewer than 4 of: eel: label more" in capsys.readouterr().out
    assert settings(tmp_path / "out")["shots"] == 2


def test_what_it_writes_is_trained_and_tested_on(tmp_path):
    root = plain_folders(tmp_path / "pets")
    assert init(root, tmp_path / "out") == 0
    data = [f"--config={tmp_path}/out/data.yaml", f"--config={CONFIGS}/trainer/cpu.yaml"]
    stage = [f"--config={CONFIGS}/teacher/quickstart.yaml", *SHORT, "--data.init_args.num_workers=0"]
    assert main(["fit", *data, *stage, f"--out={tmp_path}/run"]) == 0
    assert main(["test", f"--config={tmp_path}/run/config.yaml"]) == 0
    with (tmp_path / "run/test_predictions.csv").open(newline="") as file:
        assert {row["label"] for row in csv.DictReader(file)} == {"cat", "dog"}


def test_names_with_commas_quotes_and_newlines_survive(tmp_path):
    root = plain_folders(tmp_path / "pets", classes=('cat, "tabby"', "dog\nline"))
    assert init(root, tmp_path / "out") == 0
    assert {row["label"] for row in rows_of(tmp_path / "out/images.csv")} == {'cat, "tabby"', "dog\nline"}


@pytest.mark.parametrize("kind", ["missing", "empty", "flat", "unreadable class", "config there"])
def test_what_cannot_be_is_one_sentence_and_writes_nothing(kind, tmp_path, capsys):
    root, out = tmp_path / "pets", tmp_path / "out"
    if kind == "empty":
        root.mkdir()
    if kind == "flat":
        picture(root / "1.png", 1, 1, 1)
    if kind == "unreadable class":
        plain_folders(root)
        (root / "eel").mkdir()
        (root / "eel/1.png").write_bytes(b"")
    if kind == "config there":
        plain_folders(root)
        out.mkdir()
        (out / "data.yaml").write_text("mine")
    assert init(root, out) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert not (out / "images.csv").exists()
    if kind == "config there":
        assert (out / "data.yaml").read_text() == "mine"
