import csv
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import refused, start_process
from sklearn.datasets import load_digits

from kdpl import Classifier, ClassVectors
from kdpl.__main__ import main


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of five digits, some of them in subfolders, with a file that is not an image."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "b" / "deep").mkdir(parents=True)
    images = load_digits().images
    for i, name in enumerate(
        ["z.png", "a, with comma.png", "b/1.jpg", "b/deep/2.png", "b/deep/10.PNG"]
    ):
        Image.fromarray((images[i] * 15).astype("uint8")).resize((40, 40)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_images_of_folders_are_predicted_to_standard_output_or_a_file(
    classifier, digits, tmp_path, capsys
):
    arguments = ["predict", str(classifier), str(digits / "b"), str(digits), "--batch-size=2"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("path,class,probability,error\n")
    paths = [row["path"] for row in rows(out)]
    names = [str(Path(path).relative_to(digits)) for path in paths]
    below = ["b/1.jpg", "b/deep/10.PNG", "b/deep/2.png"]
    assert (sorted(names[:3]), sorted(names[3:])) == (below, ["a, with comma.png", *below, "z.png"])
    for row, (expected,) in zip(rows(out), Classifier.load(classifier).predict(paths), strict=True):
        assert row["class"] == expected.class_name
        assert float(row["probability"]) == pytest.approx(expected.probability, abs=2e-6)
    assert main([*arguments, f"--out={tmp_path}/new/table.csv"]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "new/table.csv").read_text() == out


def test_files_of_a_folder_that_are_not_images_are_counted_by_suffix(
    classifier, digits, tmp_path, capsys, monkeypatch
):
    for name in ("a.heic", "b/B.HEIC", ".hidden.heic", "c.xmp", "shard.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(digits / "z.png", tmp_path / "z.png")
    monkeypatch.chdir(tmp_path.parent)
    assert (
        main(["predict", str(classifier), f"./{tmp_path.name}/", str(tmp_path / "b/B.HEIC")]) == 0
    )
    said = capsys.readouterr()
    predicted, refused = rows(said.out)
    assert (predicted["path"], predicted["error"]) == (f"{tmp_path.name}/z.png", "")
    assert refused["error"].startswith(f"image {tmp_path}/b/B.HEIC cannot be read")
    assert said.err.endswith("not images, and passed over: .heic (2), .xmp (1), .tar (1)\n")


def test_half_precision_agrees_but_for_rounding(classifier, digits, capsys):
    whole, dtypes = Classifier.load(classifier), set()
    paths = sorted(map(str, digits.rglob("*.png")))
    whole.encoder.projector.register_forward_pre_hook(lambda _, args: dtypes.add(args[0].dtype))
    assert main(["predict", str(classifier), *paths, "--precision=bf16-mixed"]) == 0
    table, half = rows(capsys.readouterr().out), whole.predict(paths, precision="bf16-mixed")
    assert dtypes == {torch.bfloat16}
    exact = whole.predict(paths)
    assert exact == Classifier.load(classifier).predict(paths), "the weights are float32 again"
    for row, (one,), (other,) in zip(table, half, exact, strict=True):
        assert row["class"] == one.class_name == other.class_name
        assert float(row["probability"]) == pytest.approx(one.probability, abs=2e-6)
        assert one.probability == pytest.approx(other.probability, abs=0.02)
    assert half != exact


@pytest.mark.slow
def test_a_reader_that_ends_early_is_not_an_error(classifier, digits):
    process = start_process(
        ["predict", str(classifier), *[str(digits)] * 400], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == "path,class,probability,error\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


def test_added_classes_are_among_the_most_probable_ones_that_have_columns(
    classifier, teacher_run, digits, tmp_path, capsys
):
    path = tmp_path / "further.safetensors"
    encode = ["class-vectors", f"--teacher={teacher_run}", f"--out={path}"]
    assert main([*encode, "--classes", "cross", "circle"]) == 0
    capsys.readouterr()
    # all of them
    predict = ["predict", str(classifier), str(digits), f"--add-classes={path}", "--top-k=99"]
    assert main(predict) == 0
    table = rows(capsys.readouterr().out)
    assert [*table[0]][-3:] == ["class_12", "probability_12", "error"]
    more = Classifier.load(classifier).add_classes(ClassVectors.load(path))
    predictions = more.predict([row["path"] for row in table], top_k=12)
    for row, expected in zip(table, predictions, strict=True):
        values = [*row.values()][1:-1]
        names, probabilities = zip(*expected, strict=True)
        assert values[::2] == [*names]
        assert [float(p) for p in values[1::2]] == pytest.approx([*probabilities], abs=2e-6)
        assert {"cross", "circle", "nine"} < set(values)


def test_a_wrong_argument_is_named(classifier, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    both = [str(classifier), str(digits)]
    no_gpu = [] if torch.cuda.is_available() else [([*both, "--device=cuda"], ["finds no GPU"])]
    for args, words in (
        *no_gpu,
        (both[:1], ["no images"]),
        ([both[0], "gone.png"], ["gone.png"]),
        ([*both, "--top-k=0"], ["--top-k"]),
        ([*both, "--precision=bf16"], ["precision", "bf16-mixed"]),
        ([*both, "--out=."], ["--out . is a folder"]),
    ):
        refused(capsys, main(["predict", *args]), *words)
    assert list(tmp_path.iterdir()) == []


def test_all_kinds_of_images_are_rows_and_unreadable_ones_have_the_reason(
    classifier, digits, tmp_path, capsys
):
    (tmp_path / "empty.png").touch()
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).write_bytes((digits / "z.png").read_bytes())
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        shard.add(digits / "b" / "1.jpg", "in/1.jpg")
    listed = tmp_path / "list.txt"
    listed.write_text(f"{digits}/z.png\n{tmp_path}/gone.png\n")
    images = [str(tmp_path / file) for file in ("empty.png", "s.tar", name)]
    predict = ["predict", str(classifier), *images, f"--list={listed}", "--top-k=2"]
    capsys.readouterr()
    assert main([*predict, f"--out={tmp_path}/t.csv"]) == 0
    assert "5 images, 2 of them unreadable" in capsys.readouterr().err
    found = rows((tmp_path / "t.csv").read_text())
    paths = [row["path"].removeprefix(f"{tmp_path}/") for row in found]
    assert paths == ["empty.png", "s.tar/in/1.jpg", "caf\\xe9.png", f"{digits}/z.png", "gone.png"]
    assert [bool(row["error"]) for row in found] == [True, False, False, False, True]
    parquet = pytest.importorskip("pyarrow.parquet")
    assert main([*predict, f"--out={tmp_path}/t.parquet"]) == 0
    table = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    for row, expected in zip(table, found, strict=True):
        assert list(row) == list(expected)
        assert {
            k: "" if v is None else f"{v:.6f}" if isinstance(v, float) else v
            for k, v in row.items()
        } == expected
