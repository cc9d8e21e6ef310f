import warnings

import pytest
import runs
import world
import zoo

from kdpl.__main__ import main
from kdpl.data.decoding import open_image
from kdpl.errors import DataError


@pytest.mark.parametrize("kind", zoo.GOOD)
def test_an_odd_image_opens_as_rgb_of_its_colours_without_a_warning(kind, tmp_path):
    name, make, size, place, colour = zoo.GOOD[kind]
    make(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = open_image(str(tmp_path / name))
    assert (image.mode, image.size) == ("RGB", size)
    assert image.getpixel(place) == colour


@pytest.mark.parametrize("kind", zoo.BAD)
def test_a_bad_image_is_one_sentence_that_names_it_and_says_why(kind, tmp_path):
    name, make, reason = zoo.BAD[kind]
    make(tmp_path / name)
    with pytest.raises(DataError, match=reason) as error:
        open_image(str(tmp_path / name))
    assert str(error.value).startswith(f"image {tmp_path / name} ")
    assert world.one_sentence(error)


@pytest.mark.parametrize("batch_size", [4, 64])
def test_bad_images_among_others_are_rows_with_their_error_and_change_no_other_row(
    batch_size, classifier, tmp_path, capsys
):
    folder = tmp_path / "zoo"
    good = zoo.write(folder, zoo.GOOD)

    def predict(out):
        assert main(["predict", str(classifier), str(folder), f"--out={out}", f"--batch-size={batch_size}"]) == 0
        return out.read_text().splitlines()

    clean = predict(tmp_path / "clean.csv")
    capsys.readouterr()
    bad = zoo.write(folder, zoo.BAD)
    mixed = predict(tmp_path / "mixed.csv")
    assert f"{len(good) + len(bad)} images, {len(bad)} of them unreadable" in capsys.readouterr().err
    rows = runs.rows_of(tmp_path / "mixed.csv")
    assert [row["path"] for row in rows] == sorted([*good, *bad])
    assert [row["path"] for row in rows if row["error"]] == bad
    assert all(row["path"] in row["error"] and not row["class"] for row in rows if row["error"])
    assert [line for line, row in zip(mixed[1:], rows, strict=True) if not row["error"]] == clean[1:]
