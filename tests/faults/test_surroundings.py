"""Locales, dates and names that are not those of a usual machine."""

import os
import subprocess

import pytest
from runs import error_line, folder_fit, image_folder, start_process

from kdpl.__main__ import main

ELSEWHERE = {"LC_ALL": "C", "TZ": "Pacific/Kiritimati"}
"""A locale without umlauts, in which it is tomorrow already."""


@pytest.mark.slow
def test_a_locale_without_umlauts_another_date_and_a_name_that_is_not_utf8_change_no_result(
    tmp_path, classifier, capsys
):
    def output(args):
        process = start_process(args, stdout=subprocess.PIPE, **ELSEWHERE)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return out

    root = image_folder(tmp_path / "Größen", classes=("Bär", "Großer Hund"))
    image = root / "test" / "Bär" / os.fsdecode(b"caf\xe9.png")
    (root / "test" / "Bär" / "3.png").rename(image)
    (root / "train" / "Bär" / "3.png").rename(root / "train" / "Bär" / image.name)
    output(folder_fit(root, tmp_path / "Läufe"))
    assert main(folder_fit(root, tmp_path / "runs")) == 0
    for file in ("class_vectors.safetensors", "prompts.safetensors", "checked_images.json"):
        assert (tmp_path / "Läufe" / file).read_bytes() == (tmp_path / "runs" / file).read_bytes(), file
    assert main(["test", f"--config={tmp_path}/runs/config.yaml"]) == 0
    assert os.fsencode(image) in (tmp_path / "runs" / "test_predictions.csv").read_bytes()
    capsys.readouterr()
    predict = ["predict", str(classifier), str(root / "test")]
    assert main(predict) == 0
    expected = capsys.readouterr().out
    assert output(predict) == expected
    assert f"{root}/test/Bär/caf\\xe9.png," in expected


def test_a_colon_in_a_path_works_in_a_config_and_is_refused_where_yaml_reads_a_section(tmp_path, monkeypatch, capsys):
    root = image_folder(tmp_path / "d: 1")
    monkeypatch.chdir(tmp_path)
    assert main(folder_fit(str(root), "out: 1")) == 1
    error_line(capsys, "root")
    own = tmp_path / "own.yaml"
    own.write_text(f'data:\n  init_args:\n    root: "{root}"\n')
    assert main([*folder_fit("elsewhere", "out: 1"), f"--config={own}"]) == 0
    assert main(["test", "--config=out: 1/config.yaml"]) == 0
    assert (tmp_path / "out: 1" / "test.json").is_file()
