import pytest
import world

from kdpl.data.class_mapping import ClassName, name_classes, read_class_mapping
from kdpl.errors import ConfigError, DataError

FOLDERS = ["n01", "n02"]


def written(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.csv", 'n02,"crane, the bird"\nn01,tench\n'),
        ("names.CSV", '\ufefffolder,name\r\n"n01", tench \r\n\r\nn02,"crane, the bird"\r\n'),
    ],
)
def test_csv_maps_folder_to_name(tmp_path, name, content):
    path = written(tmp_path, name, content)
    assert read_class_mapping(path, FOLDERS) == {
        "n01": ClassName("tench"),
        "n02": ClassName("crane, the bird"),
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.csv", 'label,name,text\nn02,shark,"shark, a large fish."\nn01,tench,\n'),
    ],
)
def test_a_class_may_have_a_text_beside_its_name(tmp_path, name, content):
    file = str(written(tmp_path, name, content))
    assert name_classes(FOLDERS, file, None) == (
        ("tench", "shark"),
        ("tench", "shark, a large fish"),
    )
    around = name_classes(FOLDERS, file, "{}, seen from a boat")
    assert around == (
        ("tench", "shark"),
        ("tench, seen from a boat", "shark, a large fish, seen from a boat"),
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.csv", "label,name,text,text,text\nn02,shark,a fish.,,jaws\nn01,tench,,,\n"),
    ],
)
def test_a_class_may_have_several_texts(tmp_path, name, content):
    file = str(written(tmp_path, name, content))
    assert name_classes(FOLDERS, file, None) == (("tench", "shark"), ("tench", ("a fish", "jaws")))
    assert name_classes(FOLDERS, file, "big {}")[1] == ("big tench", ("big a fish", "big jaws"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "label,name,text,text\ne\u0301,E\u0301,e\u0301 1,e\u0301 2\n"),
    ],
)
def test_a_class_is_found_by_either_spelling_of_its_name_in_unicode(tmp_path, name, content):
    file = str(written(tmp_path, name, content))
    expected = (("\u00c9",), ("\u00e9 1 \u00e9", "\u00e9 2 \u00e9"))
    assert name_classes(["\u00e9"], file, "{} e\u0301") == (expected[0], (expected[1],))


@pytest.mark.parametrize("heading", ["", "name,label\n"])
def test_names_before_labels_are_refused_with_a_row_in_the_right_order(heading, tmp_path):
    path = written(tmp_path, "names.csv", f"{heading}shark,n02\ntench,n01\n")
    with pytest.raises(DataError, match=r"names before labels: swap its columns, .* n01,tench$"):
        read_class_mapping(path, FOLDERS)


def test_a_text_around_all_names_needs_no_file_but_one_place_for_the_name():
    assert name_classes(FOLDERS, None, "{}, a type of pet.")[1] == (
        "n01, a type of pet",
        "n02, a type of pet",
    )
    assert name_classes(FOLDERS, None, None) == (("n01", "n02"), None)
    for text in ("a type of pet", "{} or {}", ""):
        with pytest.raises(ConfigError, match=r"expected a text with one \{\}"):
            name_classes(FOLDERS, None, text)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "n01,tench\n", "lacks class 'n02': name the dataset's classes, .*"),
        (
            "a.csv",
            "n01,a\nn02,b\nn3,c\n",
            "names class 'n3', which the dataset does not have: .*",
        ),
        ("a.csv", "n01,a\nn02,a\n", "gives classes 'n01' and 'n02' the same name 'a': .*"),
        ("a.csv", "n01,a\nn01,b\nn02,c\n", "has 'n01' twice: keep one"),
        ("a.csv", "n01,a\nn02, \n", "gives class 'n02' an empty name: .*"),
        (
            "a.csv",
            "label,name,text\nn01,a,b\nn02,c\n",
            "cannot be read as CSV: row 3 has 2 columns, expected 3: .*",
        ),
        (
            "a.csv",
            "label,name,text,text\nn01,a,b\n",
            "cannot be read as CSV: row 2 has 3 columns, expected 4: .*",
        ),
        ("a.csv", b"n01,a\nn02,K\xe4fer\n", r"is not in UTF-8 \(line 2\): save it as UTF-8"),
        ("a.txt", b"n01\nn02\xe4\n", r"is not in UTF-8 \(line 2\): save it as UTF-8"),
        ("a.csv", None, r"cannot be read \(No such file or directory\): give a text file"),
        (
            "a.csv",
            "n01,a, b\nn02,c\n",
            "cannot be read as CSV: row 1 has 3 columns, expected 2: put a value with a comma in quotes",
        ),
        ("a.xml", "n01 a", r"is of an unknown kind: give a \.txt or \.csv file"),
        ("a.txt", "n01\nn02\nn01\n", "has 'n01' twice: keep one"),
        (
            "a.txt",
            "jos\u00e9\njose\u0301\n",
            "has 'jos\u00e9' twice: keep one",
        ),
        (
            "a.csv",
            "n01,jos\u00e9\nn02,jose\u0301\n",
            "gives classes 'n01' and 'n02' the same name .*",
        ),
        ("a.txt", "n01\n", "lacks class 'n02': name the dataset's classes, .*"),
    ],
)
def test_faults_are_one_sentence_that_names_the_file(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"^class names file {path} {message}$"):
        read_class_mapping(path, FOLDERS)


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        (
            "names.txt",
            "\ufeffsea otter\r\n\r\n  tench \nant, red\n",
            ["sea otter", "tench", "ant, red"],
        ),
        ("names.csv", "n02,tench\nn01,ant\n", ["tench", "ant"]),
        ("names.csv", "n02,tench,\nn01,ant, ,\n", ["tench", "ant"]),
    ],
)
def test_without_labels_the_classes_are_those_of_the_file_in_its_order(
    tmp_path, name, content, names
):
    file = written(tmp_path, name, content)
    keys = read_class_mapping(file, ["n02"] if "n02" in content else [], complete=False)
    assert list(name_classes([*keys], file, None)[0]) == names
    with world.refused(DataError, f"class names file {file} lacks class 'eel'"):
        read_class_mapping(file, ["eel"], complete=False)


def test_an_empty_list_of_classes_is_refused(tmp_path):
    with world.refused(DataError, "names.txt names no class: write a name on each line"):
        read_class_mapping(written(tmp_path, "names.txt", "\n"), [], complete=False)
