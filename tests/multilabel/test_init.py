"""init on a table of several labels."""

import csv
import shlex

from runs import SHORT

from kdpl.__main__ import main
from kdpl.data.domain import build_data
from kdpl.runtime.configs import read_config


def rows_of(path):
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def without_splits(table, folder):
    """The pages without their splits, of which the first two have no label, but an empty one."""
    rows = [(table.parent / row["image"], row["label"]) for row in rows_of(table)]
    rows[0], rows[1] = (rows[0][0], "?"), (rows[1][0], "")
    with (folder / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *rows])
    return folder / "mine.csv"


def test_init_writes_a_config_that_reads_the_same_labels(table, tmp_path, capsys):
    mine, out = without_splits(table, tmp_path), tmp_path / "data"
    options = ["--label-separator=;", "--empty-labels=no_class", "--val-share=20%", "--workers=1"]
    assert main(["init", str(mine), f"--out={out}", *options]) == 0
    said = capsys.readouterr().out
    assert "5 classes, 84 images" in said
    assert "unlabelled: 1" in said
    assert "--student refined" not in said

    known = {row["image"]: row["label"] for row in rows_of(mine)}
    written = {row["image"]: row["label"] for row in rows_of(out / "images.csv")}
    assert written == {path: label or ";" for path, label in known.items()}
    splits = {row["split"] for row in rows_of(out / "images.csv")}
    assert splits == {"train", "val", "held_out"}

    data = build_data([read_config(str(out / "data.yaml"))["data"]])
    assert data.task == "multilabel"
    records = [*data.splits.train, *data.splits.val, *data.splits.test]
    assert len(records) == 83
    for record in records:
        names = [data.class_names[label] for label in record.label]
        assert names == sorted(filter(None, known[record.source].split(";")))
    assert len(data.splits.unlabeled) == 1


def test_rows_with_an_empty_label_are_counted_by_what_they_are_told_to_mean(
    table, tmp_path, capsys
):
    mine = without_splits(table, tmp_path)
    empty = sum(row["label"] == "" for row in rows_of(mine))
    init = ["init", str(mine), "--label-separator=;", "--workers=1"]
    assert main([*init, f"--out={tmp_path}/data"]) != 0
    assert f"{empty} of 84 rows of {mine} have an empty label" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()

    for meaning, said, cell in (
        ("no_class", f"of none of the classes: {empty} of these", ";"),
        ("unlabeled", f"unlabelled: {empty + 1}", "?"),
    ):
        out = tmp_path / meaning
        assert main([*init, f"--empty-labels={meaning}", f"--out={out}"]) == 0
        assert said in capsys.readouterr().out
        # the list that is written has no empty label
        cells = [row["label"] for row in rows_of(out / "images.csv")]
        assert (cells.count(""), cells.count(cell)) == (0, empty + (cell == "?"))


def test_init_prints_a_command_whose_student_sees_crops_and_can_follow(table, tmp_path, capsys):
    out = tmp_path / "data"
    init = ["init", str(table), "--label-separator=;", "--empty-labels=no_class", "--workers=1"]
    assert main([*init, f"--out={out}", "--shots=4"]) == 0
    said = capsys.readouterr().out
    command = shlex.split(said.splitlines()[-1])
    assert "--student promptkd_vit_b16 --student local_views" in shlex.join(command)
    small = "--teacher quickstart --student quickstart_timm_64 --student local_views"
    assert small in said

    # what is printed for a machine without a GPU or a network runs
    given = ["--config", str(out / "data.yaml"), "--config", "trainer/cpu", *shlex.split(small)]
    short = [*SHORT, "--data.init_args.num_workers=0", f"--out={tmp_path}/run"]
    assert main([*command[3:4], *given, *short]) == 0
    said = capsys.readouterr().out
    assert "chance" in said
    assert "the student agrees with its targets on" in said


def test_a_name_with_the_separator_of_predictions_is_refused_before_anything_is_written(
    table, tmp_path, capsys
):
    rows = [(table.parent / row["image"], row["label"]) for row in rows_of(table)]
    mine = tmp_path / "mine.csv"
    with mine.open("w", newline="") as file:
        named = [
            (image, ",".join(label.split(";")).replace("two", "two;2")) for image, label in rows
        ]
        csv.writer(file).writerows([("image", "label"), *named])
    init = [
        "init",
        str(mine),
        "--label-separator=,",
        "--empty-labels=no_class",
        f"--out={tmp_path}/data",
        "--workers=1",
    ]
    assert main(init) != 0
    assert "class 'two;2' has a ';' in its name" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()

    names = [f"{name},{name}" for name in ("four", "one", "three", "zero")]
    (tmp_path / "names.csv").write_text("\n".join([*names, "two;2,two"]))
    assert main([*init, f"--class-names={tmp_path}/names.csv"]) == 0


def test_what_several_labels_do_not_go_with_is_refused(table, tmp_path, capsys):
    mine, out = without_splits(table, tmp_path), f"--out={tmp_path}/data"
    for more, said in [
        ([str(table.parent), "--label-separator=;"], "only a table has several labels"),
        ([str(mine)], "set label_separator to ';'"),
    ]:
        assert main(["init", out, *more]) != 0
        assert said in capsys.readouterr().err
