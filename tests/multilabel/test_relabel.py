"""Tables of several labels an image that init --labels takes."""

import pytest
from pages import write_table
from PIL import Image
from runs import rows_of

from kdpl.__main__ import main


@pytest.fixture(scope="module")
def mine(table, tmp_path_factory):
    """The pages as a table with commas, of which six of the training pages have no label."""
    rows = [[table.parent / row["image"], row["label"], row["split"]] for row in rows_of(table)]
    for number, row in enumerate(rows):
        row[1] = "?" if number < 6 else row[1].replace(";", ",") or ","
    file = tmp_path_factory.mktemp("mine") / "mine.csv"
    return write_table(file, ("image", "label", "split"), *rows)


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
