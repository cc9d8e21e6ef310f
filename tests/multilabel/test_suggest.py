"""What to label next where images have several labels, and init with the labels that were given."""

import shlex

import pytest
import torch
from pages import NAMES, data_of, write_table
from PIL import Image
from runs import SHORT, configs, rows_of

from kdpl.__main__ import main
from kdpl.report.labeling.choice import to_label


@pytest.fixture(scope="module")
def mine(table, tmp_path_factory):
    """The pages as a table with commas, of which six of the training pages have no label."""
    rows = [[table.parent / row["image"], row["label"], row["split"]] for row in rows_of(table)]
    for number, row in enumerate(rows):
        row[1] = "?" if number < 6 else row[1].replace(";", ",") or ","
    file = tmp_path_factory.mktemp("mine") / "mine.csv"
    return write_table(file, ("image", "label", "split"), *rows)


@pytest.fixture(scope="module")
def teacher(mine):
    out = mine.parent / "teacher"
    options = data_of(mine, *configs("teacher/quickstart.yaml", "trainer/cpu.yaml"), separator=",")
    short = [*SHORT, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    assert main(["fit", *options, *short, f"--out={out}"]) == 0
    return out


def test_images_without_labels_are_suggested_and_init_takes_their_labels(
    teacher, mine, tmp_path, capsys
):
    capsys.readouterr()
    assert main(["suggest", str(teacher), "--images=4", f"--out={tmp_path}/next"]) == 0
    said = capsys.readouterr().out
    assert "4 images to label" in said
    assert "several labels an image are not checked" in said
    rows = rows_of(tmp_path / "next/labels.csv")
    hidden = [row["image"] for row in rows_of(mine)[:6]]
    assert {row["image"] for row in rows} <= {*hidden}
    assert [row["label"] for row in rows] == ["?"] * 4
    assert all({*filter(None, row["likely"].split(","))} <= {*NAMES} for row in rows)
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    page = (tmp_path / "next/suggestions.html").read_text(encoding="utf-8")
    assert "<code>,</code> alone if it is of none of them" in page

    labels = ["two,one", ",", "?", "zero"]
    filled = [(row["image"], label) for row, label in zip(rows, labels, strict=True)]
    write_table(tmp_path / "next/labels.csv", ("image", "label"), *filled)
    command = shlex.split(said.splitlines()[-1])
    assert command[:4] == ["python", "-m", "kdpl", "init"]
    assert main([*command[3:], "--workers=1"]) == 0
    written = {row["image"]: row["label"] for row in rows_of(tmp_path / "next_data/images.csv")}
    assert [written[row["image"]] for row in rows] == ["one,two", ",", "?", "zero"]
    before = {row["image"]: row["label"] for row in rows_of(mine) if row["label"] != "?"}
    assert before.items() <= written.items()


def test_a_new_image_may_have_several_labels_and_a_class_that_there_is_not_is_refused(
    mine, tmp_path, capsys
):
    Image.effect_noise((40, 40), 50).convert("RGB").save(tmp_path / "new.png")
    table, out = tmp_path / "labels.csv", tmp_path / "data"
    init = ["init", str(mine), "--label-separator=,", f"--labels={table}", f"--out={out}"]
    for label, words in (
        ("one,tow", f"row 1 of {table} has the label 'tow'"),
        ("one,two", f"row 2 of {table} gives new.png another label"),
    ):
        write_table(table, ("image", "label"), ("new.png", label), ("new.png", "one"))
        assert main(init) != 0
        assert words in capsys.readouterr().err
    write_table(table, ("image", "label"), ("new.png", "two, one"), ("new.png", "one,two"))
    assert main([*init, "--workers=1"]) == 0
    written = {row["image"]: row["label"] for row in rows_of(out / "images.csv")}
    assert written[str(tmp_path / "new.png")] == "one,two"


def test_of_images_that_cover_no_other_the_ones_whose_classes_are_least_sure_come_first():
    having = torch.rand(30, 5, generator=torch.Generator().manual_seed(2))
    probabilities = torch.stack([1 - having, having], dim=2)
    entropies = -(probabilities * probabilities.log()).sum(dim=2).mean(dim=1)
    assert to_label(torch.eye(30), probabilities, 30) == entropies.argsort().flip(0).tolist()
