import pytest

from kdpl.classifier.sources import find_sources
from kdpl.errors import DataError


def test_files_folders_patterns_and_lists_come_in_the_order_given(tmp_path):
    pictures, listed = tmp_path / "p", tmp_path / "list.txt"
    (pictures / "deep").mkdir(parents=True)
    # the first is a file, though its name looks like a pattern
    for name in ("[1].png", "a.png", "deep/b.jpg", "deep/c.PNG", "deep/note.txt"):
        (pictures / name).touch()
    listed.write_bytes(b"x y.png\r\n\nnot there.jpg\n" + str(pictures).encode() + b"/a.png")
    arguments = ["deep/c.PNG", "deep", "**/*.[jp][pn]g", "[1].png"]
    found = find_sources([f"{pictures}/{each}" for each in arguments], listed)
    expected = ["deep/c.PNG", "deep/b.jpg", "deep/c.PNG", "[1].png", "a.png", "deep/b.jpg"]
    expected += ["[1].png", "x y.png", "not there.jpg", "a.png"]
    assert [path.removeprefix(f"{pictures}/") for path in found] == expected


def test_a_table_lists_images_by_its_column(tmp_path):
    (tmp_path / "list.csv").write_text('image,video\n"a, b.png",1\nc.png,\n')
    assert find_sources([], tmp_path / "list.csv") == ["a, b.png", "c.png"]
    (tmp_path / "list.csv").write_text("path\na.png\n")
    with pytest.raises(DataError, match="no table with rows and the column image"):
        find_sources([], tmp_path / "list.csv")
