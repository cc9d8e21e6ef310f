"""What to label next where images have several labels, and init with the labels that were given."""

import csv
import math
import shlex

import pytest
import torch
from PIL import Image
from runs import STAGES, rows_of

from kdpl.__main__ import main
from kdpl.report.labeling.choice import to_label


def write(table, rows):
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture(scope="module")
def mine(table, tmp_path_factory):
    """The pages as a table with commas, of which six of the training pages have no label."""
    folder = tmp_path_factory.mktemp("mine")
    rows = [[table.parent / row["image"], row["label"], row["split"]] for row in rows_of(table)]
    for row in rows:
        row[1] = row[1].replace(";", ",") or ","
    for row in rows[:6]:
        row[1] = "?"
    write(folder / "mine.csv", [("image", "label", "split"), *rows])
    return folder / "mine.csv"


@pytest.fixture(scope="module")
def teacher(mine):
    out = mine.parent / "teacher"
    pages = [
        "--data.class_path=kdpl.DomainDataModule",
        "--data.init_args.dataset=table",
        f"--data.init_args.root={mine}",
        "--data.init_args.classes.label_separator=,",
        "--data.init_args.shots=4",
        "--data.init_args.num_workers=0",
    ]
    config = STAGES[0].replace("--teacher=", "--config=")
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    assert main(["fit", config, *pages, *short, f"--out={out}"]) == 0
    return out


def test_images_without_labels_are_suggested_and_init_takes_their_labels(
    teacher, mine, tmp_path, capsys
):
    capsys.readouterr()
    assert main(["suggest", str(teacher), "--images=4", f"--out={tmp_path}/next"]) == 0
    said = capsys.readouterr().out
    assert "4 images to label, 0 labels that look wrong" in said
    assert "several labels an image are not checked" in said
    rows = rows_of(tmp_path / "next/labels.csv")
    hidden = [row["image"] for row in rows_of(mine)[:6]]
    assert {row["image"] for row in rows} <= {*hidden}
    assert [row["label"] for row in rows] == ["?"] * 4
    names = {"four", "one", "three", "two", "zero"}
    assert all({*filter(None, row["likely"].split(","))} <= names for row in rows)
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    page = (tmp_path / "next/suggestions.html").read_text(encoding="utf-8")
    assert (
        "with\n<code>,</code> between them, or <code>,</code> alone if it is of none of them"
        in page
    )

    labels = ["two,one", ",", "?", "zero"]
    filled = [(row["image"], label) for row, label in zip(rows, labels, strict=True)]
    write(tmp_path / "next/labels.csv", [("image", "label"), *filled])
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
    for label, fault in (
        ("one,tow", "row 1 of {} has the label 'tow', which is not a class: write 'two'"),
        ("one,two", "row 2 of {} gives new.png another label than a row before"),
    ):
        write(table, [("image", "label"), ("new.png", label), ("new.png", "one")])
        assert main(init) != 0
        assert fault.format(table) in capsys.readouterr().err
    write(table, [("image", "label"), ("new.png", "two, one"), ("new.png", "one,two")])
    assert main([*init, "--workers=1"]) == 0
    written = {row["image"]: row["label"] for row in rows_of(out / "images.csv")}
    assert written[str(tmp_path / "new.png")] == "one,two"


def test_the_weight_of_an_image_is_the_mean_entropy_of_its_classes():
    draw = torch.Generator().manual_seed(2)
    features = torch.nn.functional.normalize(torch.randn(30, 8, generator=draw), dim=1)
    having = torch.rand(30, 5, generator=draw)
    chosen = to_label(features, torch.stack([1 - having, having], dim=2), 4)

    weights = []
    for row in having.tolist():
        entropies = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2) for p in row]
        weights.append(1 + sum(entropies) / 5)
    covered, expected = [0.0] * 30, []
    similarity = (features @ features.T).tolist()
    for _ in range(4):
        gains = [
            sum(w * max(s - c, 0.0) for w, s, c in zip(weights, row, covered, strict=True))
            for row in similarity
        ]
        gains = [-1.0 if i in expected else gain for i, gain in enumerate(gains)]
        expected.append(gains.index(max(gains)))
        covered = [max(c, s) for c, s in zip(covered, similarity[expected[-1]], strict=True)]
    assert chosen == expected
