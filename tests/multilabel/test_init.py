"""init on a table of several labels."""

import shlex

import pytest
from pages import write_table
from runs import SHORT, interrupted_at, rows_of

from kdpl.__main__ import main
from kdpl.data.domain import build_data
from kdpl.runtime.configs import read_config


@pytest.fixture
def mine(table, tmp_path):
    """The pages without their splits, of which the first has no label and the second no class."""
    rows = [[table.parent / row["image"], row["label"]] for row in rows_of(table)]
    rows[0][1], rows[1][1] = "?", ";"
    return write_table(tmp_path / "mine.csv", ("image", "label"), *rows)


def test_init_writes_a_config_that_reads_the_same_labels(mine, tmp_path, capsys):
    out = tmp_path / "data"
    options = ["--label-separator=;", "--val-share=20%", "--workers=1"]
    assert main(["init", str(mine), f"--out={out}", *options]) == 0
    said = capsys.readouterr().out
    assert "5 classes, 84 images" in said
    assert "unlabelled: 1" in said
    # what is printed is accepted up to its first step, here with CLIPs that need no network
    assert "--student promptkd_vit_b16 --student local_views" in said
    miniatures = {"promptsrc_vit_l14": "quickstart", "promptkd_vit_b16": "quickstart_timm_64"}
    words = [miniatures.get(word, word) for word in shlex.split(said.splitlines()[-1])]
    with interrupted_at(1):
        assert main([*words[3:], *SHORT, f"--out={tmp_path}/run"]) == 130

    labels = {row["image"]: row["label"] for row in rows_of(mine)}
    rows = rows_of(out / "images.csv")
    assert {row["image"]: row["label"] for row in rows} == labels
    assert {row["split"] for row in rows} == {"train", "val", "held_out"}

    data = build_data([read_config(str(out / "data.yaml"))["data"]])
    assert data.task == "multilabel"
    records = [*data.splits.train, *data.splits.val, *data.splits.test]
    assert len(records) == 83
    for record in records:
        names = [data.class_names[label] for label in record.label]
        assert names == sorted(filter(None, labels[record.source].split(";")))
    assert len(data.splits.unlabeled) == 1


def test_images_of_no_class_are_counted_and_empty_labels_refused(mine, tmp_path, capsys):
    none = sum(row["label"] == ";" for row in rows_of(mine))
    init = ["init", str(mine), "--label-separator=;", "--workers=1", f"--out={tmp_path}/data"]
    assert main(init) == 0
    assert f"of none of the classes: {none} of these" in capsys.readouterr().out
    mine.write_text(mine.read_text().replace(",;\n", ",\n"))
    assert main([*init, "--overwrite"]) != 0
    assert f"{none} of 84 rows of {mine} have an empty label" in capsys.readouterr().err


def test_a_name_with_the_separator_of_predictions_is_refused_before_anything_is_written(
    mine, tmp_path, capsys
):
    rows = [
        (row["image"], row["label"].replace(";", ",").replace("two", "two;2"))
        for row in rows_of(mine)
    ]
    write_table(mine, ("image", "label"), *rows)
    init = ["init", str(mine), "--label-separator=,", "--workers=1"]
    init.append(f"--out={tmp_path}/data")
    assert main(init) != 0
    assert "class 'two;2' has a ';' in its name" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()

    names = [(name, name) for name in ("four", "one", "three", "zero")]
    write_table(tmp_path / "names.csv", *names, ("two;2", "two"))
    assert main([*init, f"--class-names={tmp_path}/names.csv"]) == 0


def test_a_folder_has_no_several_labels(table, tmp_path, capsys):
    options = [str(table.parent), "--label-separator=;", f"--out={tmp_path}/data"]
    assert main(["init", *options]) != 0
    assert "only a table has several labels" in capsys.readouterr().err
