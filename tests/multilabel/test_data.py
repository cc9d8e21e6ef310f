"""Tables of several labels, sampling by class, batches, and init."""

import random
import shlex

import pytest
import torch
import world
from pages import pages, write_table
from runs import SHORT, interrupted_at, refused, rows_of

from kdpl.__main__ import main
from kdpl.data.domain import build_data
from kdpl.data.labels import Labels
from kdpl.data.options import ReadingOptions
from kdpl.data.readers.table import Table
from kdpl.data.sampling import few_shot, hold_out, require_shots, with_labels
from kdpl.data.splits import Record, Splits
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.configs import read_config
from kdpl.runtime.resizing import Resizing


def table_of(folder, *lines):
    path = folder / "t.csv"
    path.write_text("\n".join(["image,label,split", *lines]) + "\n")
    return str(path)


def labels_in(records):
    return {record.source.rpartition("/")[2]: record.label for record in records}


def test_a_cell_is_a_set_of_labels_none_of_the_classes_or_no_label(tmp_path):
    training = ("a.png,cat;dog,", "b.png,;,", "c.png,?,", "d.png, dog ;dog,")
    table = table_of(tmp_path, *training, "e.png,fox,test", "f.png,;,test")
    reader = Table(table, label_separator=";")
    assert reader.task == "multilabel"
    splits = reader.read()
    assert splits.class_names == ("cat", "dog", "fox")
    assert labels_in(splits.train) == {"a.png": (0, 1), "b.png": (), "d.png": (1,)}
    assert labels_in(splits.test) == {"e.png": (2,), "f.png": ()}
    assert [source.rpartition("/")[2] for source in splits.unlabeled] == ["c.png"]
    comma = table_of(tmp_path, 'a.png,"tench, a fish",', "b.png,dog,")
    assert Table(comma).read().class_names == ("dog", "tench, a fish")


@pytest.mark.parametrize(
    ("lines", "separator", "words"),
    [
        (["a,cat;dog,", "b,,", "c,?,", "d,;,"], ";", "1 of 4 rows .* have an empty label"),
        (["a,cat;dog,", "b,cat;?,"], ";", "row 2 of .* has the label 'cat;\\?'"),
        (["a,cat;dog,", "b,fox,"], ",", "one label in each row, such as 'cat;dog'"),
        (["a,cat;dog,", "b,dog,", "c,cat,"], None, "'cat;dog', .*label_separator to ';'"),
    ],
)
def test_labels_that_are_not_clear_are_refused(lines, separator, words, tmp_path):
    with world.refused(DataError, words):
        Table(table_of(tmp_path, *lines), label_separator=separator).read()


def test_images_of_a_table_without_labels_have_none_and_are_not_of_no_class(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "t.csv").write_text("image\na.png\nb.png\n")
    names = str(tmp_path / "names.txt")
    splits = Table(str(tmp_path / "t.csv"), class_names=names, label_separator=";").read()
    assert splits.train == ()
    assert len(splits.unlabeled) == 2


def random_records(count, classes, seed):
    draw = random.Random(seed)  # noqa: S311
    return [
        Record(str(i), tuple(c for c in range(classes) if draw.random() < 0.15 + 0.1 * c))
        for i in range(count)
    ]


@pytest.mark.parametrize("seed", range(2))
def test_a_sample_has_k_images_with_each_class_and_k_without_and_none_twice(seed):
    records = random_records(200, 5, seed)
    sample, val = few_shot(records, records[:50], 8, 2, seed)
    assert len({record.source for record in sample}) == len(sample)
    for c in range(5):
        having = sum(c in record.label for record in sample)
        assert having >= 8
        assert len(sample) - having >= 8
        assert sum(c in record.label for record in val) >= 2
    # no image is superfluous: at most k with and k without for each class
    assert len(sample) <= 2 * 8 * 5
    assert few_shot(records, records[:50], 8, 2, seed) == (sample, val)
    assert few_shot(records, records[:50], 8, 2, seed + 1)[0] != sample


@pytest.mark.parametrize(
    ("labels", "shots", "words"),
    [
        ([(0,), (0, 1), (0,)], 1, "class 'x' is lacked by 0 training images"),
        ([(), (1,), (0,), (0,)], 2, "class 'y' has 1 training images"),
    ],
)
def test_too_few_images_with_or_without_a_class_are_refused(labels, shots, words):
    records = [Record(str(i), label) for i, label in enumerate(labels)]
    with world.refused(DataError, words):
        require_shots(records, ["x", "y"], shots)


def test_labels_of_other_classes_are_taken_away_and_their_images_stay():
    records = [Record("a", (0, 2)), Record("b", (2,)), Record("c", 1)]
    assert with_labels(records, range(2)) == [Record("a", (0,)), Record("b", ()), Record("c", 1)]


def test_held_out_images_are_a_share_of_each_class():
    records = random_records(300, 6, 0)
    splits = Splits("x", tuple("abcdef"), tuple(records), (), (), None, open)
    apart = hold_out(splits, 0.25)
    assert hold_out(splits, 0.25) == apart
    assert {*apart.test} | {*apart.train} == {*records}
    for c in range(6):
        whole = sum(c in record.label for record in records)
        test = sum(c in record.label for record in apart.test)
        assert abs(test - 0.25 * whole) <= max(3, 0.15 * whole)
        assert 0 < test < whole


@pytest.mark.parametrize("seed", range(2))
def test_a_class_whose_images_have_rarer_ones_keeps_one_to_train_on(seed):
    labels = [(1,), (0, 1), (2,), (0, 2), (3,), (0, 3), *[()] * 20]
    random.Random(seed).shuffle(labels)  # noqa: S311
    records = tuple(Record(str(i), label) for i, label in enumerate(labels))
    apart = hold_out(Splits("x", tuple("abcd"), records, (), (), None, open), 0.25)
    for label in range(4):
        assert any(label in record.label for record in apart.train)
        assert any(label in record.label for record in apart.test)
    assert sum(not record.label for record in apart.test) == 5


def test_novel_labels_do_not_choose_the_validation_images_but_are_kept():
    def sampled(novel):
        draw = random.Random(1)  # noqa: S311
        val = tuple(
            Record(str(i), (*record.label, *(c for c in novel if draw.random() < 0.5)))
            for i, record in enumerate(random_records(60, 2, 0))
        )
        splits = Splits("x", tuple("abcd"), val, val, (), None, open)
        labels = Labels(splits, "base_to_novel", 2, 2, True, 1)
        return labels.evaluation("val"), labels.training(), val

    (images, trained, _), (other_images, same, val) = sampled(()), sampled((2, 3))
    assert [image.source for image in images] == [image.source for image in other_images]
    assert trained == same
    assert {*other_images} < {*val}


def test_no_label_of_a_novel_class_is_in_a_training_batch(table):
    data = pages(table, protocol="base_to_novel", reading=ReadingOptions(scan=False))
    assert data.task == "multilabel"
    assert all({*record.label} <= {0, 1, 2} for record in data.labels.training())
    batch = next(iter(data.train_dataloader_for("labeled", Resizing(16))))
    assert batch.labels.shape == (8, 3)
    assert batch.labels.dtype == torch.float32
    tested = next(iter(data.evaluation_dataloader_for("test", Resizing(16))))
    assert tested.labels.shape == (24, 5)
    assert tested.labels[:, 3:].any()


def test_classes_of_several_labels_are_not_balanced(table):
    with world.refused(ConfigError, "balance_classes draws images of one class each"):
        pages(table, balance_classes=True)


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
    # what is printed is accepted, up to its first step
    command = said.splitlines()[-1]
    assert "--student quickstart_timm_64 --student local_views" in command
    with interrupted_at(1):
        assert main([*shlex.split(command)[3:], *SHORT, f"--out={tmp_path}/run"]) == 130

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
    again = main([*init, "--overwrite"])
    refused(capsys, again, f"{none} of 84 rows of {mine} have an empty label")


def test_a_name_with_the_separator_is_refused_before_anything_is_written(mine, tmp_path, capsys):
    rows = [
        (row["image"], row["label"].replace(";", ",").replace("two", "two;2"))
        for row in rows_of(mine)
    ]
    write_table(mine, ("image", "label"), *rows)
    init = ["init", str(mine), "--label-separator=,", "--workers=1", f"--out={tmp_path}/data"]
    refused(capsys, main(init), "class 'two;2' has a ';' in its name")
    assert not (tmp_path / "data").exists()

    names = [(name, name) for name in ("four", "one", "three", "zero")]
    write_table(tmp_path / "names.csv", *names, ("two;2", "two"))
    assert main([*init, f"--class-names={tmp_path}/names.csv"]) == 0


def test_a_folder_has_no_several_labels(table, tmp_path, capsys):
    options = [str(table.parent), "--label-separator=;", f"--out={tmp_path}/data"]
    refused(capsys, main(["init", *options]), "only a table has several labels")
