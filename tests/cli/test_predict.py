import csv
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from kdpl import Classifier, ClassVectors
from kdpl.__main__ import main


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of five digits, some of them deeper, with a file that is no image."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "b" / "deep").mkdir(parents=True)
    for i, name in enumerate(["z.png", "a, with comma.png", "b/1.jpg", "b/deep/2.png", "b/deep/10.PNG"]):
        Image.fromarray((load_digits().images[i] * 15).astype("uint8")).resize((40, 40)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def classifier(student_run):
    return student_run / "classifier"


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_standard_output_is_csv_and_nothing_else_in_the_order_given(classifier, digits, capsys):
    paths = [str(digits / "z.png"), str(digits / "a, with comma.png"), str(digits / "b/1.jpg")]
    assert main(["predict", str(classifier), *paths]) == 0
    out = capsys.readouterr().out
    assert out.startswith("path,class,probability,error\n")
    assert [row["path"] for row in rows(out)] == paths
    assert all(0 < float(row["probability"]) <= 1 for row in rows(out))


def test_the_classes_are_those_of_the_classifier(classifier, digits, capsys):
    paths = sorted(str(p) for p in digits.rglob("*") if p.suffix.lower() in (".png", ".jpg"))
    assert main(["predict", str(classifier), *paths, "--batch-size=2"]) == 0
    expected = [guess for (guess,) in Classifier.load(classifier).predict(paths)]
    answers = rows(capsys.readouterr().out)
    assert [row["class"] for row in answers] == [guess.class_name for guess in expected]
    assert [float(row["probability"]) for row in answers] == pytest.approx([g.probability for g in expected], abs=2e-6)


def test_folders_are_searched_recursively_for_images_alone(classifier, digits, capsys):
    assert main(["predict", str(classifier), str(digits / "b"), str(digits)]) == 0
    found = [str(Path(row["path"]).relative_to(digits)) for row in rows(capsys.readouterr().out)]
    assert sorted(found[:3]) == ["b/1.jpg", "b/deep/10.PNG", "b/deep/2.png"]
    assert sorted(found[3:]) == ["a, with comma.png", "b/1.jpg", "b/deep/10.PNG", "b/deep/2.png", "z.png"]


def test_top_k_gives_one_row_an_image_with_that_many_guesses_most_probable_first(classifier, digits, capsys):
    assert main(["predict", str(classifier), str(digits / "b"), "--top-k=3"]) == 0
    answers = rows(capsys.readouterr().out)
    assert len(answers) == len({row["path"] for row in answers}) == 3
    names = ["path", "class", "probability", "class_2", "probability_2", "class_3", "probability_3", "error"]
    for row in answers:
        assert list(row) == names
        assert len({row["class"], row["class_2"], row["class_3"]}) == 3
        assert float(row["probability"]) >= float(row["probability_2"]) >= float(row["probability_3"])
    assert main(["predict", str(classifier), str(digits / "z.png"), "--top-k=99"]) == 0
    (answer,) = rows(capsys.readouterr().out)
    probabilities = [float(value) for name, value in answer.items() if name.startswith("probability")]
    assert len(probabilities) == 10
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)


def test_a_file_gets_the_same_lines_and_standard_output_none(classifier, digits, capsys, tmp_path):
    assert main(["predict", str(classifier), str(digits)]) == 0
    out = capsys.readouterr().out
    assert main(["predict", str(classifier), str(digits), f"--out={tmp_path / 'new/answers.csv'}"]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "new/answers.csv").read_text() == out


def test_a_reader_that_has_seen_enough_is_no_error(classifier, digits):
    code = (
        f"import sys; from kdpl.__main__ import main; "
        f"sys.exit(main(['predict', {str(classifier)!r}, *[{str(digits)!r}] * 400, '--top-k=1']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "path,class,probability,error\n"
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


@pytest.fixture
def further(teacher_run, tmp_path):
    """Class vectors of two further classes, by the classifier's own teacher."""
    path = tmp_path / "further.safetensors"
    assert main(["class-vectors", f"--teacher={teacher_run}", f"--out={path}", "--classes", "cross", "circle"]) == 0
    return path


def test_further_classes_are_among_the_answers(classifier, digits, further, capsys):
    capsys.readouterr()
    assert main(["predict", str(classifier), str(digits), f"--add-classes={further}", "--top-k=12"]) == 0
    answers = rows(capsys.readouterr().out)
    more = Classifier.load(classifier).add_classes(ClassVectors.load(further))
    for row, guesses in zip(answers, more.predict([row["path"] for row in answers], top_k=12), strict=True):
        values = list(row.values())[1:-1]
        assert values[::2] == [guess.class_name for guess in guesses]
        assert [float(p) for p in values[1::2]] == pytest.approx([guess.probability for guess in guesses], abs=2e-6)
        assert {"cross", "circle", "nine"} < set(values)


def fails(capsys, args, *words):
    assert main(["predict", *args]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    return out


def test_what_is_missing_is_named(classifier, digits, student_run, tmp_path, capsys):
    image = str(digits / "z.png")
    assert fails(capsys, [], "classifier", "--help") == ""
    assert fails(capsys, [str(classifier)], "no images") == ""
    assert fails(capsys, [str(tmp_path / "gone"), image], str(tmp_path / "gone"), "classifier") == ""
    assert fails(capsys, [str(student_run), image], str(student_run), "is not a classifier") == ""
    assert fails(capsys, [str(classifier), image, "gone.png"], "gone.png", "does not exist") == ""
    (tmp_path / "empty").mkdir()
    assert fails(capsys, [str(classifier), str(tmp_path / "empty")], "empty", "no images") == ""


@pytest.mark.parametrize("option", ["--top-k=0", "--batch-size=0", "--workers=0", "--top-k=x", "--part=3/2"])
def test_numbers_that_cannot_be_are_named(option, classifier, digits, capsys):
    assert fails(capsys, [str(classifier), str(digits), option], option.partition("=")[0]) == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced_in_silence(classifier, digits, capsys):
    assert fails(capsys, [str(classifier), str(digits), "--device=cuda"], "--device cuda", "no GPU") == ""


def test_an_ending_that_is_no_format_is_refused_before_anything_is_done(classifier, digits, tmp_path, capsys):
    fails(
        capsys, [str(classifier), str(digits), f"--out={tmp_path}/a.xlsx"], "a.xlsx has an unknown ending", ".parquet"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_parquet_file_has_the_rows_of_the_csv(classifier, digits, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    for ending in ("csv", "parquet"):
        arguments = [str(classifier), str(digits), str(tmp_path / "bad.png"), "--top-k=2"]
        assert main(["predict", *arguments, f"--out={tmp_path}/a.{ending}"]) == 0
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    expected = rows((tmp_path / "a.csv").read_text())
    assert [list(row) for row in table] == [list(row) for row in expected]
    for row, wanted in zip(table, expected, strict=True):
        assert (row["path"], row["class_2"] or "", row["error"] or "") == (
            wanted["path"],
            wanted["class_2"],
            wanted["error"],
        )
        assert row["probability_2"] is None or f"{row['probability_2']:.6f}" == wanted["probability_2"]


def test_an_image_in_a_shard_gets_the_answer_of_the_file(classifier, digits, tmp_path, capsys):
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        shard.add(digits, arcname="in")
    assert main(["predict", str(classifier), str(tmp_path / "s.tar")]) == 0
    answers = {row["path"].removeprefix(f"{tmp_path}/s.tar/in/"): row for row in rows(capsys.readouterr().out)}
    assert main(["predict", str(classifier), str(digits)]) == 0
    expected = rows(capsys.readouterr().out)
    assert len(answers) == len(expected) == 5
    for row in expected:
        answer = answers[str(Path(row["path"]).relative_to(digits))]
        assert answer["class"] == row["class"]
        assert float(answer["probability"]) == pytest.approx(float(row["probability"]), abs=2e-6)


def test_further_classes_that_do_not_fit_are_one_sentence(classifier, digits, teacher_run, tmp_path, capsys):
    known, gone = teacher_run / "class_vectors.safetensors", tmp_path / "gone.safetensors"
    fails(capsys, [str(classifier), str(digits), f"--add-classes={known}"], "'zero' already")
    fails(capsys, [str(classifier), str(digits), f"--add-classes={gone}"], str(gone), "does not exist")


def test_a_folder_is_not_replaced_by_the_answers(classifier, digits, tmp_path, capsys):
    (tmp_path / "precious.txt").touch()
    fails(capsys, [str(classifier), str(digits), f"--out={tmp_path}"], f"--out {tmp_path} is a folder", "file")
    assert (tmp_path / "precious.txt").exists()


def test_an_unreadable_image_is_a_row_with_the_reason_and_is_counted(classifier, digits, tmp_path, capsys):
    bad, gone, listed = tmp_path / "bad.png", tmp_path / "gone.png", tmp_path / "list.txt"
    bad.write_bytes(b"no image")
    listed.write_text(f"{bad}\n\n{digits / 'z.png'}\n{gone}\n")
    assert main(["predict", str(classifier), str(digits / "z.png"), f"--list={listed}"]) == 0
    out, err = capsys.readouterr()
    good, first, again, second = rows(out)
    assert [row["path"] for row in (first, second)] == [str(bad), str(gone)]
    assert first["class"] == first["probability"] == second["class"] == ""
    assert f"image {bad} cannot be read" in first["error"]
    assert f"image {gone} does not exist" in second["error"]
    assert good == again
    assert good["error"] == ""
    assert err.startswith("4 images, 2 of them unreadable, ")
    assert err.count("\n") == 1


def test_a_damaged_classifier_is_named(classifier, digits, tmp_path, capsys):
    copy = tmp_path / "classifier"
    shutil.copytree(classifier, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    fails(capsys, [str(copy), str(digits)], str(copy), "damaged")
