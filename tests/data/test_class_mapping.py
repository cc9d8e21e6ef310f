import json

import pytest

from kdpl.data.class_mapping import read_class_mapping
from kdpl.errors import DataError

FOLDERS = ["n01", "n02"]


def written(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.json", json.dumps({"n02": "great white shark", "n01": "tench"})),
        ("names.csv", "n02,great white shark\nn01,tench\n"),
        ("names.csv", "folder,name\nn01,tench\n\nn02, great white shark \n"),
        ("names.CSV", '\ufefffolder,name\r\n"n01","tench"\r\nn02,great white shark\r\n'),
    ],
)
def test_json_and_csv_map_folder_to_name(tmp_path, name, content):
    path = written(tmp_path, name, content)
    assert read_class_mapping(path, FOLDERS) == {"n01": "tench", "n02": "great white shark"}


def test_csv_name_may_hold_a_comma(tmp_path):
    path = written(tmp_path, "names.csv", 'n01,"crane, the bird"\nn02,crane\n')
    assert read_class_mapping(path, FOLDERS)["n01"] == "crane, the bird"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"n01": "tench"}', r"lacks folder 'n02': add it with its class name\."),
        ("a.json", '{"n01": "a", "n02": "b", "n3": "c"}', r"names folder 'n3', which the dataset does not have: .*"),
        ("a.json", '{"n01": "a", "n02": "a"}', r"gives folders 'n01' and 'n02' the same name 'a': .*"),
        ("a.json", '{"n01": "a", "n01": "b", "n02": "c"}', r"has folder 'n01' twice: .*"),
        ("a.json", '{"n01": "a", "n02": " "}', r"gives folder 'n02' an empty name: .*"),
        ("a.json", '{"n01": "a", "n02": 3}', r"cannot be read as JSON: expected one object .*"),
        ("a.json", '{"n01": "a", "n02": {"x": "y"}}', r"cannot be read as JSON: expected one object .*"),
        ("a.json", '["n01", "n02"]', r"cannot be read as JSON: expected one object .*"),
        ("a.json", '{"n01": ', r"cannot be read as JSON: .*"),
        ("a.csv", "n01,a\nn02\n", r"cannot be read as CSV: row 2 has 1 columns .*"),
        ("a.txt", "n01 a", r"must end in \.json or \.csv\."),
    ],
)
def test_faults_are_one_sentence_that_names_the_file(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(DataError, match=rf"^class names file {path} {message}$"):
        read_class_mapping(path, FOLDERS)


def test_missing_file_and_wrong_encoding_are_named(tmp_path):
    with pytest.raises(DataError, match=r"^class names file .*gone\.csv does not exist: check class_names\.$"):
        read_class_mapping(tmp_path / "gone.csv", FOLDERS)
    (tmp_path / "bytes.csv").write_bytes(b"n01,\xff\xfe\n")
    with pytest.raises(DataError, match=r"^class names file .*bytes\.csv cannot be read as CSV: .*utf-8"):
        read_class_mapping(tmp_path / "bytes.csv", FOLDERS)
