"""Locales, clocks and paths that are not those of the machine that this was written on."""

import os
import subprocess

from runs import files_of, fit_teacher, folder_fit, image_folder, rows_of, start_process

from kdpl.__main__ import main
from kdpl.callbacks.throughput import Throughput

ELSEWHERE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Kiritimati"}
"""A locale that knows no umlaut, with Python's own remedies switched off, and where it is tomorrow already."""

NO_UTF8 = os.fsdecode(b"caf\xe9.png")


def finished(args, **variables):
    """The output of a command that ends well."""
    process = start_process(args, stdout=subprocess.PIPE, **variables)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def with_a_name_that_is_no_utf8(root):
    for split in ("train", "test"):
        (root / split / "Bär" / "3.png").rename(root / split / "Bär" / NO_UTF8)
    return root


def test_a_locale_without_umlauts_and_another_day_have_no_influence(tmp_path, classifier, capsys):
    root = with_a_name_that_is_no_utf8(image_folder(tmp_path / "Größen", classes=("Bär", "Großer Hund")))
    finished(folder_fit(root, tmp_path / "Läufe"), **ELSEWHERE)
    assert main(folder_fit(root, tmp_path / "runs")) == 0
    for file in ("class_vectors.safetensors", "prompts.safetensors", "checked_images.json"):
        assert (tmp_path / "Läufe" / file).read_bytes() == (tmp_path / "runs" / file).read_bytes(), file
    capsys.readouterr()
    predict = ["predict", str(classifier), str(root / "test")]
    assert main(predict) == 0
    answers = capsys.readouterr().out
    assert finished(predict, **ELSEWHERE) == answers
    assert f"{root}/test/Bär/caf\\xe9.png," in answers


def test_a_name_that_is_no_utf8_is_trained_on_and_named_in_the_answers(tmp_path):
    root = with_a_name_that_is_no_utf8(image_folder(tmp_path / "data", classes=("Bär", "Hund")))
    before = files_of(root)
    out = tmp_path / "out"
    assert main(folder_fit(root, out)) == 0
    assert main(["test", f"--config={out}/config.yaml"]) == 0
    assert os.fsencode(root / "test" / "Bär" / NO_UTF8) in (out / "test_predictions.csv").read_bytes()
    assert files_of(root) == before


def test_a_clock_that_went_back_makes_no_other_checkpoint_the_last(tmp_path, monkeypatch):
    three = "--trainer.max_epochs=3"
    whole, out = tmp_path / "whole", tmp_path / "cut"
    assert fit_teacher(whole, three) == 0
    original = Throughput.on_train_batch_end

    def cut(self, trainer, *args):
        if trainer.global_step == 8:
            raise KeyboardInterrupt
        return original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", cut)
        assert fit_teacher(out, three) == 130
    for name, seconds in (("last.ckpt", 0), ("previous.ckpt", 2**31)):
        os.utime(out / "checkpoints" / name, (seconds, seconds))
    assert fit_teacher(out, three) == 0
    assert (out / "prompts.safetensors").read_bytes() == (whole / "prompts.safetensors").read_bytes()
    epochs = [row["epoch"] for row in rows_of(out / "metrics.csv")]
    assert epochs == sorted(epochs), "no epoch was trained twice"


def test_a_colon_in_a_path_is_one_of_its_characters_or_gets_the_way_to_write_it(tmp_path, monkeypatch, capsys):
    root = image_folder(tmp_path / "d: 1")
    monkeypatch.chdir(tmp_path)
    for path in (str(root), root.name):
        assert main(folder_fit(path, "out: 1")) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: setting data.init_args.root is {'"), line
        assert line.endswith("is taken for a section: give it in a config, within quotes"), line
        assert list(tmp_path.iterdir()) == [root]
    own = tmp_path / "own.yaml"
    own.write_text(f'data:\n  init_args:\n    root: "{root}"\n')
    assert main([*folder_fit("elsewhere", "out: 1"), f"--config={own}"]) == 0
    assert main(["test", "--config=out: 1/config.yaml"]) == 0
    assert (tmp_path / "out: 1" / "class_vectors.safetensors").is_file()
    assert (tmp_path / "out: 1" / "test.json").is_file()


def test_a_place_that_cannot_be_made_is_one_sentence_and_nothing_else(tmp_path, capsys, classifier):
    root, file = image_folder(tmp_path / "data"), tmp_path / "file"
    file.write_text("mine")
    for place in (file / "below", tmp_path / ("x" * 256), tmp_path / ("y" * 256) / "below"):
        for command in (
            folder_fit(root, place),
            ["init", str(root), f"--out={place}"],
            ["predict", str(classifier), str(root), f"--out={place}/answers.csv"],
        ):
            capsys.readouterr()
            assert main(command) == 1
            line = capsys.readouterr().err.splitlines()[-1]
            assert line.startswith(f"error: {place}"), line
            assert "Not a directory: check path" in line or "File name too long: check path" in line
    assert sorted(tmp_path.iterdir()) == [root, file]
    assert file.read_text() == "mine"
