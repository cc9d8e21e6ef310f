import pytest
import world

from kdpl.data.class_mapping import ClassName, name_classes, read_class_mapping
from kdpl.errors import ConfigError, DataError

FOLDERS = ["n01", "n02"]


def written(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path / name


def test_csv_maps_folder_to_name(tmp_path):
    content = '\ufefffolder,name\r\n"n01", tench \r\n\r\nn02,"crane, the bird"\r\n'
    names = {"n01": ClassName("tench"), "n02": ClassName("crane, the bird")}
    assert read_class_mapping(written(tmp_path, "names.CSV", content), FOLDERS) == names


def test_a_class_may_have_texts_beside_its_name(tmp_path):
    content = 'label,name,text\nn02,shark,"shark, a large fish."\nn01,tench,\n'
    one = str(written(tmp_path, "one.csv", content))
    content = "label,name,text,text,text\nn02,shark,a fish.,,jaws\nn01,tench,,,\n"
    several = str(written(tmp_path, "several.csv", content))
    for file, around, texts in (
        (one, None, ("tench", "shark, a large fish")),
        (one, "big {} here", ("big tench here", "big shark, a large fish here")),
        (several, None, ("tench", ("a fish", "jaws"))),
        (several, "big {}", ("big tench", ("big a fish", "big jaws"))),
    ):
        assert name_classes(FOLDERS, file, around) == (("tench", "shark"), texts)


def test_a_class_is_found_by_either_spelling_of_its_name_in_unicode(tmp_path):
    content = "label,name,text\ne\u0301,E\u0301,e\u0301 1\n"
    expected = (("\u00c9",), ("\u00e9 1 \u00e9",))
    file = str(written(tmp_path, "a.csv", content))
    assert name_classes(["\u00e9"], file, "{} e\u0301") == expected


def test_a_text_around_all_names_needs_no_file_but_one_place_for_the_name():
    texts = ("n01, a type of pet", "n02, a type of pet")
    assert name_classes(FOLDERS, None, "{}, a type of pet.")[1] == texts
    assert name_classes(FOLDERS, None, None) == (("n01", "n02"), None)
    for text in ("a type of pet", "{} or {}", ""):
        with pytest.raises(ConfigError, match=r"expected a text with one \{\}"):
            name_classes(FOLDERS, None, text)


def test_faults_are_one_sentence_that_names_the_file(tmp_path):
    for name, content, message in (
        ("a.csv", "n01,a\nn02,b\nn3,c\n", "names class 'n3', which the dataset does not have"),
        ("a.csv", "n01,a\nn02,a\n", "has 'a' twice"),
        ("a.csv", "a,n01\nb,n02\n", "lacks class 'n01' and names class 'a', which"),
        ("a.csv", "n01,a\nn01,b\nn02,c\n", "has 'n01' twice"),
        ("a.csv", "n01,a\nn02, \n", "has an empty name"),
        ("a.csv", "label,name,text\nn01,a,b\nn02,c\n", ".* row 3 has 2 columns, expected 3"),
        ("a.csv", "label,name,text,text\nn01,a,b\n", ".* row 2 has 3 columns, expected 4"),
        ("a.csv", "label,name,text,note\nn01,a,b,c\n", ".* row 1 has 4 columns, expected 2"),
        ("a.csv", "n01,a, b\nn02,c\n", ".* row 1 has 3 columns, expected 2: .* in quotes"),
        ("a.csv", b"n01,a\nn02,K\xe4fer\n", r"is not in UTF-8 \(line 2\)"),
        ("a.xml", b"n01 a", r"is of an unknown kind"),
        ("a.txt", "jos\u00e9\njose\u0301\n", "has 'jos\u00e9' twice"),
    ):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with world.refused(DataError, rf"^class names file {path} {message}"):
            read_class_mapping(path, FOLDERS)
    with world.refused(DataError, r"b.csv cannot be read \(No such file or directory\)"):
        read_class_mapping(tmp_path / "b.csv", FOLDERS)


def test_a_second_remedy_is_for_a_file_that_names_no_class_at_all(tmp_path):
    file = written(tmp_path, "names.txt", "eel\ncrab\n")
    for keys, otherwise, end in (
        (["2020", "2021"], "move them", "in a .csv file, or move them"),
        (["2020", "2021"], "", "in a .csv file"),
        (["2020", "eel"], "move them", "in a .csv file"),
    ):
        with world.refused(DataError, f"lacks class '2020' .* {end}$"):
            read_class_mapping(file, keys, otherwise=otherwise)


def test_without_labels_classes_are_in_the_order_of_the_file_and_one_is_needed(tmp_path):
    lines = "\ufeffsea otter\r\n\r\n  tench \nant, red\n"
    for name, content, keys, names in (
        ("a.txt", lines, [], ("sea otter", "tench", "ant, red")),
        ("names.csv", "n02,tench\nn01,ant, ,\n", ["n02"], ("tench", "ant")),
    ):
        file = written(tmp_path, name, content)
        mapping = read_class_mapping(file, keys, complete=False)
        assert name_classes([*mapping], file, None)[0] == names
        with world.refused(DataError, f"class names file {file} lacks class 'eel'"):
            read_class_mapping(file, ["eel"], complete=False)
    with world.refused(DataError, "names.txt names no class: write a name on each line"):
        read_class_mapping(written(tmp_path, "names.txt", "\n"), [], complete=False)
