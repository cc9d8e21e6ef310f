from kdpl.classifier.sources import find_sources


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
