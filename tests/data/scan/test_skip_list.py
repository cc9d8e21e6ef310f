import pytest
import runs
import world

from kdpl.data.options import ReadingOptions
from kdpl.errors import DataError


def test_a_list_of_images_to_leave_out_may_be_of_two_kinds(pets, tmp_path):
    dog = str(pets / "train/dog/5.png")
    (tmp_path / "skip.txt").write_text(f"{dog}\nelsewhere.png\n")
    (tmp_path / "skip.csv").write_text(f'path,reason\n"{dog}",blurred\n')
    for file in tmp_path.glob("skip.*"):
        assert (
            len(runs.in_folder(pets, reading=ReadingOptions(skip_list=str(file))).splits.train)
            == 11
        )


@pytest.mark.parametrize(
    ("name", "content"), [("gone.txt", None), ("x.json", "{}"), ("x.txt", "1.png")]
)
def test_a_list_that_does_not_fit_is_one_sentence(pets, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    with world.refused(DataError, "skip list"):
        _ = runs.in_folder(pets, reading=ReadingOptions(skip_list=str(tmp_path / name))).splits
