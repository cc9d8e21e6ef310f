import os
import subprocess
import sys

import pytest
from runs import STUDENT, at_step, configs, error_line, files_of, folder_fit, image_folder, noise

from kdpl.__main__ import main


def fit(root, out, *more):
    return main([*folder_fit(root, out), *more])


def test_a_run_resumes_with_equal_results_once_a_missing_image_is_back(tmp_path, capsys):
    root, out = image_folder(tmp_path / "dätä"), tmp_path / "out"
    image, away = root / "train/dog/2.png", tmp_path / "away.png"
    assert fit(root, tmp_path / "whole") == 0
    with at_step(2, lambda: image.rename(away)):
        assert fit(root, out) == 1
    error_line(capsys, f"image {image} does not exist", f"{out}/checkpoints/last.ckpt is kept)")
    config = (out / "config.yaml").read_bytes()
    away.rename(image.with_stem("new"))
    assert fit(root, out) == 1
    error_line(capsys, "the run's checkpoint was made from something else (images is ", "put back")
    assert (out / "config.yaml").read_bytes() == config
    image.with_stem("new").rename(image)
    assert fit(root, out) == 0
    for name in ("class_vectors.safetensors", "prompts.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_interrupted_run_resumes_with_touched_files_and_not_with_other_images(tmp_path, capsys):
    root, out = image_folder(tmp_path / "data"), tmp_path / "out"
    image = root / "train/dog/2.png"
    assert fit(root, tmp_path / "whole") == 0
    with at_step(2, lambda: 1 / 0), pytest.raises(ZeroDivisionError):
        fit(root, out)
    capsys.readouterr()
    before = image.read_bytes()
    noise(40, 36).save(image)
    assert fit(root, out) == 1
    error_line(capsys, "images have changed since ", f"{out}/checked_images.json", " of 2.png (")
    image.write_bytes(before)
    for file in root.rglob("*.png"):
        os.utime(file, (0, 2e9))
    assert fit(root, out) == 0
    assert "looking at all images again" in capsys.readouterr().err
    for name in ("class_vectors.safetensors", "prompts.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_nothing_is_written_into_a_read_only_dataset(tmp_path, read_only, classifier):
    data = image_folder(tmp_path / "data")
    before = files_of(data)
    root = read_only(data)
    assert fit(root, tmp_path / "out") == 0
    student = [*configs("data/folder.yaml", "trainer/cpu.yaml"), *STUDENT]
    paths = {"data.init_args.root": root, "model.init_args.teacher": f"{tmp_path}/out"}
    paths["model.init_args.teacher_cache"] = f"{tmp_path}/cache"
    student += [f"--{name}={path}" for name, path in paths.items()]
    assert main(["fit", *student, "--trainer.max_epochs=1", f"--out={tmp_path}/student"]) == 0
    assert (tmp_path / "cache/manifest.json").is_file()
    assert main(["init", str(root), f"--out={tmp_path}/init"]) == 0
    assert main(["predict", str(classifier), str(root), f"--out={tmp_path}/predictions.csv"]) == 0
    assert files_of(data) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("read-only", "Read-only file system"),
        ("file/below", "Not a directory"),
        ("x" * 256, "File name too long"),
    ],
)
def test_a_folder_that_cannot_hold_results_is_named(
    name, words, tmp_path, classifier, capsys, request
):
    root, path = image_folder(tmp_path / "data"), tmp_path / name
    (tmp_path / "file").write_text("mine")
    if name == "read-only":
        path.mkdir()
        path = request.getfixturevalue("read_only")(path)
    before = files_of(tmp_path)
    for command in (
        folder_fit(root, path / "out"),
        ["predict", str(classifier), str(root), f"--out={path}/predictions.csv"],
        ["init", str(root), f"--out={path}/init"],
    ):
        assert main(command) == 1
        error_line(capsys, f"error: {path}", f"{words}: check path")
    assert files_of(tmp_path) == before


def test_paths_with_spaces_umlauts_and_great_length_are_paths(tmp_path):
    folder = tmp_path / "mit Leerzeichen & Ümläuten" / ("lang" * 50) / ("länger" * 30)
    root = image_folder(folder / "Bilder neu", classes=("Bär", "Hund, groß"))
    assert fit(root, folder / "ein Lauf", "--data.init_args.num_workers=1") == 0
    assert (folder / "ein Lauf" / "class_vectors.safetensors").is_file()


@pytest.mark.slow
def test_a_locale_without_umlauts_another_date_and_a_name_that_is_not_utf8_change_no_result(
    tmp_path, classifier, capsys
):
    def output(args):
        # where it is tomorrow already; not forked, since a process takes its locale as it starts
        elsewhere = {
            **os.environ,
            "LC_ALL": "C",
            "TZ": "Pacific/Kiritimati",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "kdpl", *args]
        done = subprocess.run(command, capture_output=True, text=True, env=elsewhere)
        assert done.returncode == 0, done.stderr
        return done.stdout

    root = image_folder(tmp_path / "Größen", classes=("Bär", "Großer Hund"))
    image = root / "test" / "Bär" / os.fsdecode(b"caf\xe9.png")
    (root / "test" / "Bär" / "3.png").rename(image)
    (root / "train" / "Bär" / "3.png").rename(root / "train" / "Bär" / image.name)
    output(folder_fit(root, tmp_path / "Läufe"))
    assert main(folder_fit(root, tmp_path / "runs")) == 0
    for file in ("class_vectors.safetensors", "prompts.safetensors", "checked_images.json"):
        there = (tmp_path / "Läufe" / file).read_bytes()
        assert there == (tmp_path / "runs" / file).read_bytes(), file
    assert main(["test", f"--config={tmp_path}/runs/config.yaml"]) == 0
    assert os.fsencode(image) in (tmp_path / "runs" / "test_predictions.csv").read_bytes()
    capsys.readouterr()
    predict = ["predict", str(classifier), str(root / "test")]
    assert main(predict) == 0
    expected = capsys.readouterr().out
    assert output(predict) == expected
    assert f"{root}/test/Bär/caf\\xe9.png," in expected
