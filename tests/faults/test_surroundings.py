"""Locales, names and clocks that are not those of a usual machine."""

import os
import subprocess

import pytest
from runs import error_line, files_of, fit_teacher, folder_fit, image_folder, rows_of, start_process

from kdpl.__main__ import main
from kdpl.callbacks.throughput import Throughput

ELSEWHERE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Kiritimati"}
"""A locale without umlauts, with Python's own remedies switched off, in which it is tomorrow already."""

NO_UTF8 = os.fsdecode(b"caf\xe9.png")


def with_a_name_that_is_not_utf8(root):
    for split in ("train", "test"):
        (root / split / "Bär" / "3.png").rename(root / split / "Bär" / NO_UTF8)
    return root


@pytest.mark.slow
def test_a_locale_without_umlauts_and_another_date_change_no_result(tmp_path, classifier, capsys):
    def output(args):
        process = start_process(args, stdout=subprocess.PIPE, **ELSEWHERE)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return out

    root = with_a_name_that_is_not_utf8(image_folder(tmp_path / "Größen", classes=("Bär", "Großer Hund")))
    output(folder_fit(root, tmp_path / "Läufe"))
    assert main(folder_fit(root, tmp_path / "runs")) == 0
    for file in ("class_vectors.safetensors", "prompts.safetensors", "checked_images.json"):
        assert (tmp_path / "Läufe" / file).read_bytes() == (tmp_path / "runs" / file).read_bytes(), file
    capsys.readouterr()
    predict = ["predict", str(classifier), str(root / "test")]
    assert main(predict) == 0
    expected = capsys.readouterr().out
    assert output(predict) == expected
    assert f"{root}/test/Bär/caf\\xe9.png," in expected


def test_an_image_whose_name_is_not_utf8_is_used_and_named(tmp_path):
    root = with_a_name_that_is_not_utf8(image_folder(tmp_path / "data", classes=("Bär", "Hund")))
    before = files_of(root)
    out = tmp_path / "out"
    assert main(folder_fit(root, out)) == 0
    assert main(["test", f"--config={out}/config.yaml"]) == 0
    assert os.fsencode(root / "test" / "Bär" / NO_UTF8) in (out / "test_predictions.csv").read_bytes()
    assert files_of(root) == before


def test_a_clock_that_was_set_back_makes_no_other_checkpoint_the_last(tmp_path, monkeypatch):
    original, three = Throughput.on_train_batch_end, "--trainer.max_epochs=3"

    def interrupted(self, trainer, *args):
        if trainer.global_step == 8:
            raise KeyboardInterrupt
        return original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", interrupted)
        assert fit_teacher(tmp_path, three) == 130
    for name, seconds in (("last.ckpt", 0), ("previous.ckpt", 2**31)):
        os.utime(tmp_path / "checkpoints" / name, (seconds, seconds))
    assert fit_teacher(tmp_path, three) == 0
    epochs = [row["epoch"] for row in rows_of(tmp_path / "metrics.csv") if row["train/loss"]]
    assert epochs == sorted(epochs), "no epoch was trained twice"


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
