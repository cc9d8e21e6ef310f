import os
import subprocess
import sys

import pytest
from runs import at_step, error_line, files_of, folder_fit, image_folder, noise

from kdpl.__main__ import main


def fit(root, out):
    return main(folder_fit(root, out))


def test_a_run_resumes_with_equal_results_once_its_images_are_as_they_were(tmp_path, capsys):
    folder = tmp_path / "mit Leerzeichen & Ümläuten" / ("lang" * 50) / ("länger" * 30)
    root, out, whole = image_folder(folder / "Bilder neu"), folder / "ein Lauf", tmp_path / "whole"
    image, away = root / "train/dog/2.png", tmp_path / "away.png"
    assert fit(root, whole) == 0
    with at_step(2, lambda: image.rename(away)):
        assert fit(root, out) == 1
    error_line(capsys, f"image {image} does not exist", f"{out}/checkpoints/last.ckpt is kept)")
    before = away.rename(image).read_bytes()
    noise(40, 36).save(image)
    assert fit(root, out) == 1
    error_line(capsys, "images have changed since ", f"{out}/checked_images.json", " of 2.png (")
    image.write_bytes(before)
    for file in root.rglob("*.png"):
        os.utime(file, (0, 2e9))
    image.rename(image.with_stem("new"))
    assert fit(root, out) == 1
    error_line(capsys, "the run's checkpoint was made from something else (images is ", "put back")
    image.with_stem("new").rename(image)
    assert fit(root, out) == 0
    for name in ("class_vectors.safetensors", "prompts.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_nothing_is_written_into_a_read_only_dataset(tmp_path, read_only, classifier):
    data = image_folder(tmp_path / "data")
    before = files_of(data)
    root = read_only(data)
    assert fit(root, tmp_path / "out") == 0
    assert main(["init", str(root), f"--out={tmp_path}/init"]) == 0
    assert main(["predict", str(classifier), str(root), f"--out={tmp_path}/predictions.csv"]) == 0
    assert files_of(data) == before


@pytest.mark.parametrize(
    ("name", "words"), [("read-only", "Read-only file system"), ("x" * 256, "File name too long")]
)
def test_a_folder_that_cannot_hold_results_is_named(
    name, words, tmp_path, classifier, capsys, request
):
    root, path = image_folder(tmp_path / "data"), tmp_path / name
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


@pytest.mark.slow
def test_a_locale_without_umlauts_another_date_and_a_name_that_is_not_utf8_change_no_result(
    tmp_path, classifier, capsys
):
    root = image_folder(tmp_path / "Größen", classes=("Bär", "Großer Hund"))
    for split in ("train", "test"):
        folder = root / split / "Bär"
        (folder / "3.png").rename(folder / os.fsdecode(b"caf\xe9.png"))
    # where it is tomorrow already
    elsewhere = {**os.environ, "LC_ALL": "C", "TZ": "Pacific/Kiritimati", "OMP_NUM_THREADS": "1"}

    def output(args):
        # not forked, since a process takes its locale as it starts
        command = [sys.executable, "-m", "kdpl", *args]
        return subprocess.run(command, stdout=subprocess.PIPE, env=elsewhere, check=True).stdout

    output(folder_fit(root, tmp_path / "Läufe"))
    assert fit(root, tmp_path / "runs") == 0
    for file in ("class_vectors.safetensors", "prompts.safetensors", "checked_images.json"):
        there = (tmp_path / "Läufe" / file).read_bytes()
        assert there == (tmp_path / "runs" / file).read_bytes(), file
    capsys.readouterr()
    predict = ["predict", str(classifier), str(root / "test")]
    assert main(predict) == 0
    expected = capsys.readouterr().out
    assert output(predict) == expected.encode()
    assert f"{root}/test/Bär/caf\\xe9.png," in expected
