import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from PIL import Image
from runs import CONFIGS, SHORT, image_folder, rows_of
from shard_files import write_shard

from kdpl.__main__ import main
from kdpl.data import DomainDataModule
from kdpl.data.scan import FILE, Checked


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
        assert sum(row[1:] == (name, "held_out") for row in rows) == 2
        assert sum(row[1:] == (name, "train") for row in rows) == 6
    assert "test: 4, a quarter of each class, held out by chance" in capsys.readouterr().out
    assert init(root, tmp_path / "again") == 0
    assert listed(tmp_path / "again") == rows
    # a run says so too, and so does a look at what the first one wrote
    splits = splits_of(tmp_path / "out")
    assert splits.held_out
    assert len(splits.test) == 4
    assert init(tmp_path / "out" / "images.csv", tmp_path / "third") == 0
    assert splits_of(tmp_path / "third").held_out


def test_images_that_it_does_not_take_are_counted_by_folder_and_kind(tmp_path, capsys):
    root = image_folder(tmp_path / "pets", splits=("train", "valid"), images=3)
    for number, path in enumerate(("train/unlabeled/a.jfif", "loose.png", "train/loose.png", "old/cat/b.png")):
        picture(root / path, 1, 2, number)
    for name in ("a.heic", "b.HEIC"):
        (root / "train" / "cat" / name).touch()
    assert init(root, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "unlabelled: 1" in out
    assert "val: 6" in out
    assert {line.strip() for line in out.splitlines() if "not taken" in line} == {
        f"not taken: 1 images in {root}, which is not a folder of a class",
        f"not taken: 1 images in {root}/train, which is not a folder of a class",
        f"not taken: 1 images in {root}/old/cat, which is not a folder of a class",
        "not taken: 2 .heic files, which cannot be read: convert them",
    }


def test_a_copy_under_another_class_is_named_as_a_contradiction(tmp_path, capsys):
    root = plain_folders(tmp_path / "pets")
    shutil.copy(next((root / "cat").iterdir()), root / "dog" / "copy.png")
    assert init(root, tmp_path / "out") == 0
    assert " of class cat, not dog: correct one of the labels" in capsys.readouterr().out


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


def test_an_image_whose_path_is_not_utf8_is_named_and_left_out(tmp_path, capsys):
    root = plain_folders(tmp_path / "pets")
    (root / "cat" / "0.png").rename(root / "cat" / "\udcff.png")
    picture(tmp_path / "more" / "good.png", 1, 2, 3)
    picture(tmp_path / "more" / "\udcff.png", 3, 2, 1)
    assert init(root, tmp_path / "out", f"--unlabeled={tmp_path / 'more'}") == 0
    said = capsys.readouterr().out
    assert [rf"{place}/\udcff.png has a path that is not UTF-8" in said for place in ("cat", "more")] == [True, True]
    assert len(listed(tmp_path / "out")) == 15
    data = DomainDataModule(**settings(tmp_path / "out"))
    assert len(data.splits.sources) == 16
    assert not any("\udcff" in source for source in data.splits.sources)


def test_poor_classes_are_pointed_out_and_shots_follow_the_smallest(tmp_path, capsys):
    root = plain_folders(tmp_path / "pets", images=8)
    for i in range(3):
        picture(root / "eel" / f"{i}.png", 200, 9 * i, 0)
    assert init(root, tmp_path / "out") == 0
    assert "fewer than 4 of: eel: label more" in capsys.readouterr().out
    assert settings(tmp_path / "out")["shots"] == 2


def splits_of(out):
    """The dataset as a run of the written config takes it."""
    options = {"num_workers": 0, **settings(out)}
    return DomainDataModule(**options).splits


def pets_table(folder, images=6):
    """A table beside its images, in the order of its rows, with one image of each class for the test."""
    plain_folders(folder / "photos", images=images)
    rows = [
        (f"photos/{name}/{i}.png", name, "test" if i == 0 else "") for name in ("cat", "dog") for i in range(images)
    ]
    with (folder / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "split"), *rows])
    return folder / "mine.csv"


def test_a_table_on_csv_or_parquet_keeps_its_splits_and_its_images_are_found_from_elsewhere(tmp_path):
    table = pets_table(tmp_path)
    (tmp_path / "photos/dog/5.png").write_bytes(b"")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_of(table)), tmp_path / "mine.parquet")
    for name in ("mine.csv", "mine.parquet"):
        out = tmp_path / f"out of {name}"
        assert init(tmp_path / name, out) == 0
        splits = splits_of(out)
        assert [Path(record.source).name for record in splits.test] == ["0.png", "0.png"]
        assert len(splits.train) == 9
        assert all(Path(source).is_file() for source in splits.sources)
        assert not splits.held_out
        assert settings(out)["shots"] == 4


def test_further_places_are_looked_at_and_what_is_bad_or_a_copy_there_is_left_out(tmp_path, capsys, monkeypatch):
    table, more = pets_table(tmp_path), tmp_path / "more"
    write_shard(tmp_path / "a.tar", [1, 2])
    torn = write_shard(tmp_path / "b.tar", [3, 4])
    torn.write_bytes(torn.read_bytes().replace(b"IDAT", b"IDOT", 1))
    picture(more / "new.png", 1, 2, 3)
    (more / "bad.png").touch()
    shutil.copy(tmp_path / "photos/cat/0.png", more / "test copy.png")
    (more / "test link.png").symlink_to(tmp_path / "photos/dog/0.png")
    monkeypatch.chdir(tmp_path)
    places = [f"--unlabeled={each}" for each in ("more", "{a,b}.tar", "photos")]
    assert init(table, tmp_path / "out", *places) == 0
    said = capsys.readouterr().out
    assert "unlabelled: 4" in said
    assert all(each in said for each in ("bad.png cannot be read", "b.tar/0003.png cannot be read", "test copy.png is"))
    assert settings(tmp_path / "out")["unlabeled"] == [f"{tmp_path}/{each}" for each in ("more", "{a,b}.tar", "photos")]
    monkeypatch.chdir("/")
    found = [source.removeprefix(f"{tmp_path}/") for source in splits_of(tmp_path / "out").unlabeled]
    assert found == ["more/new.png", "a.tar/0001.png", "a.tar/0002.png", "b.tar/0004.png"]
    left_out = [row["image"].removeprefix(f"{tmp_path}/") for row in rows_of(tmp_path / "out/left_out.csv")]
    assert sorted(left_out) == ["b.tar/0003.png", "more/bad.png", "more/test copy.png"]


@pytest.mark.slow
def test_what_it_writes_of_a_table_and_shards_is_run_without_a_second_look(tmp_path):
    write_shard(tmp_path / "a.tar", range(8))
    table = pets_table(tmp_path)
    (tmp_path / "photos/dog/5.png").write_bytes(b"")
    assert init(table, tmp_path / "runs/pets", f"--unlabeled={tmp_path}/a.tar") == 0
    # a second look would count the images again
    replace(Checked.load(tmp_path / "runs/pets" / FILE), images=999).save(tmp_path / "runs/pets" / FILE)
    configs = [f"--config={tmp_path}/runs/pets/data.yaml", f"--config={CONFIGS}/trainer/cpu.yaml"]
    stages = [f"--{stage}={CONFIGS}/{stage}/quickstart.yaml" for stage in ("teacher", "student")]
    short = [*SHORT, "--data.init_args.num_workers=0", "--data.init_args.batch_size=4"]
    assert main(["run", *configs, *stages, f"--out={tmp_path}/runs/pets_run", *short]) == 0
    for stage in ("teacher", "student"):
        assert len(rows_of(tmp_path / "runs/pets_run" / stage / "test_predictions.csv")) == 2
        assert Checked.load(tmp_path / "runs/pets_run" / stage / FILE).images == 999
    assert (tmp_path / "runs/pets_run/student/classifier").is_dir()


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "empty",
        "flat",
        "unreadable class",
        "unspeakable class",
        "config there",
        "table there",
        "table missing",
        "table without labels",
        "place missing",
        "shard damaged",
    ],
)
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
    if kind == "unspeakable class":
        plain_folders(root, classes=("cat", "dog\nline"))
    if kind == "table there":
        root, out = pets_table(tmp_path).rename(tmp_path / "images.csv"), tmp_path
        mine = root.read_bytes()
    if kind.startswith("table") and kind != "table there":
        root = tmp_path / "mine.csv"
    if kind == "table without labels":
        root.write_text("image,label,split\na.png,,\nb.png,cat,test\n")
    place = {"place missing": "gone/", "shard damaged": "torn.tar"}.get(kind)
    if place:
        plain_folders(root)
        (tmp_path / "torn.tar").write_bytes(b"x" * 2000)
    assert init(root, out, *([f"--unlabeled={tmp_path / place}"] if place else [])) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert place is None or place.strip("/") in error
    if kind == "table there":
        assert root.read_bytes() == mine
    else:
        assert not (out / "images.csv").exists()
    assert (out / "data.yaml").exists() == (kind == "config there")
    if kind == "config there":
        assert (out / "data.yaml").read_text() == "mine"
