import csv
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from report_pages import change_vectors, put_together
from resampling import bootstrap_difference, bootstrap_harmonic_mean
from runs import fit_teacher, refused
from runs import test as run_test
from scipy.stats import ttest_ind, ttest_rel

from kdpl.__main__ import main
from kdpl.report.compare import ComparisonRow, compared
from kdpl.report.intervals import paired_difference, scores_of
from kdpl.runtime.predictions import (
    ImagePrediction,
    read_predictions,
    read_results,
    write_predictions,
)

# --- intervals ---


def binary(shape, seed, share=0.8):
    return (np.random.default_rng(seed).random(shape) < share).astype(float)


def test_with_one_seed_each_the_interval_is_that_of_paired_images():
    first, second = binary((1, 300), 1), binary((1, 300), 2, 0.9)
    found = paired_difference(first, second)
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert found.interval == pytest.approx(ttest_rel(second[0], first[0]).confidence_interval(0.95))
    assert found.interval == pytest.approx(
        bootstrap_difference(first[0] == 1, second[0] == 1), abs=0.006
    )


def test_with_differences_between_seeds_alone_the_interval_is_that_of_seeds():
    first, second = np.array([0.6, 0.7, 0.65]), np.array([0.8, 0.85, 0.81])
    blocks = [np.repeat(values[:, None], 50, axis=1) for values in (first, second)]
    paired = ttest_rel(second, first).confidence_interval(0.95)
    assert paired_difference(*blocks, same_seeds=True).interval == pytest.approx(paired)
    unpaired = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert paired_difference(*blocks).interval == pytest.approx(unpaired)


def test_with_seeds_and_images_the_interval_is_that_of_resampling_both():
    draw = np.random.default_rng(5)
    seeds, images = 25, 200
    difficulty, luck = draw.normal(size=images), 0.3 * draw.normal(size=(seeds, 1))
    first, second = (
        (difficulty + luck + shift + draw.normal(size=(seeds, images)) > 0).astype(float)
        for shift in (0.5, 0.8)
    )
    drawn = []
    for _ in range(4000):
        s, i = draw.integers(0, seeds, seeds), draw.integers(0, images, images)
        drawn.append(second[s][:, i].mean() - first[s][:, i].mean())
    expected = np.quantile(drawn, [0.025, 0.975])
    found = paired_difference(first, second, same_seeds=True)
    assert found.interval == pytest.approx(expected, abs=0.006)
    without_seeds = paired_difference(
        first.mean(axis=0, keepdims=True), second.mean(axis=0, keepdims=True)
    )
    assert np.ptp(without_seeds.interval) < np.ptp(found.interval)


def test_equal_rows_have_no_difference_and_a_mean_has_seeds_in_its_interval():
    same = binary((2, 40), 3)
    first, second = compared(
        [
            ComparisonRow("a", [1, 2], {"acc": same}),
            ComparisonRow("b", [1, 2], {"acc": same.copy()}),
        ]
    )
    assert (second["difference"], second["difference_low"], second["difference_high"]) == (0, 0, 0)
    assert (first["verdict"], second["verdict"]) == ("", "not clear")
    assert first["accuracy_low"] < first["accuracy"] < first["accuracy_high"]


@pytest.mark.parametrize(
    ("gained", "lost", "verdict"), [(30, 5, "higher"), (5, 30, "lower"), (20, 15, "not clear")]
)
def test_a_difference_is_named_if_its_interval_excludes_zero(gained, lost, verdict):
    first, second = np.zeros((1, 200)), np.zeros((1, 200))
    second[0, :gained], first[0, gained : gained + lost] = 1, 1
    low, high = bootstrap_difference(first[0] == 1, second[0] == 1)
    found = compared(
        [ComparisonRow("a", [1], {"acc": first}), ComparisonRow("b", [2], {"acc": second})]
    )[1]
    assert (
        found["verdict"]
        == verdict
        == ("higher" if low > 0 else "lower" if high < 0 else "not clear")
    )


def test_a_harmonic_mean_has_the_interval_of_resampling_base_and_novel_images():
    labels = np.repeat([0, 1, 2, 3], 60)
    predicted = np.where(binary(240, 6) == 1, labels, (labels + 1) % 4)
    predictions = [
        ImagePrediction(i, f"{i}", "", "", 0.5, int(y), 0, int(p))
        for i, (y, p) in enumerate(zip(labels, predicted, strict=True))
    ]
    run = SimpleNamespace(vectors=SimpleNamespace(num_base=1))
    scores = scores_of(run, SimpleNamespace(predictions=predictions))
    right = labels == predicted
    base, novel = right[:60], right[60:]
    assert [scores[key].mean() for key in ("acc", "base_acc", "novel_acc")] == pytest.approx(
        [(labels == 0).mean(), base.mean(), novel.mean()]
    )
    assert scores["hm"].mean() == pytest.approx(
        2 * base.mean() * novel.mean() / (base.mean() + novel.mean())
    )
    expected = bootstrap_harmonic_mean((base.sum(), 60), (novel.sum(), 180))
    found = paired_difference(np.zeros((1, 240)), scores["hm"][None])
    assert found.interval == pytest.approx(expected, abs=0.008)
    wrong = [
        SimpleNamespace(**{**vars(p), "correct": False, "half_prediction_number": 9})
        for p in predictions
    ]
    assert not scores_of(run, SimpleNamespace(predictions=wrong))["hm"].any()


# --- runs ---


@pytest.fixture
def run(tmp_path, teacher_run, student_run):
    return put_together(tmp_path / "run", teacher_run, student_run)


def copy_of(run, name, seed=1, wrong=0):
    """A copy of a run's student, of another seed, with that number of correct predictions made wrong."""
    copy = shutil.copytree(run / "student", run.parent / name)
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(
        text.replace("seed_everything: 1\n", f"seed_everything: {seed}\n")
    )
    rows = [vars(p) for p in read_predictions(copy)]
    for row in [row for row in rows if row["label_number"] == row["prediction_number"]][:wrong]:
        row["prediction_number"] = (row["label_number"] + 1) % 10
    write_predictions(copy, [ImagePrediction(**row) for row in rows])
    return copy


def compare(folder, *args, kind="none"):
    """The rows and notes that a comparison writes as JSON."""
    file = folder / "table.json"
    assert main(["compare", *map(str, args), f"--out={file}", f"--baselines={kind}"]) == 0
    found = json.loads(file.read_text())
    return found["rows"], found["notes"]


def test_runs_of_several_seeds_are_one_row_whose_mean_is_compared(run, tmp_path):
    for seed, wrong in ((2, 30), (3, 60), (4, 90)):
        copy_of(run, f"few_{seed}", seed, wrong)
    rows, notes = compare(
        tmp_path, run, f"few={tmp_path}/few_*", f"two={tmp_path}/few_3,{tmp_path}/few_2"
    )
    assert [(row["row"], row["seeds"]) for row in rows] == [("run", 1), ("few", 3), ("two", 2)]
    accuracy = 100 * read_results(run / "student")["test/acc"]
    expected = [0, -100 * 60 / 899, -100 * 45 / 899]
    assert [row["accuracy"] for row in rows] == pytest.approx(
        [accuracy + each for each in expected], abs=1e-3
    )
    assert [row["difference"] for row in rows[1:]] == pytest.approx(expected[1:], abs=1e-3)
    assert "over images and seeds" in notes[0]


def test_a_run_without_a_student_is_that_of_its_teacher(run, tmp_path):
    (row, *_), _ = compare(tmp_path, run / "teacher")
    assert row["accuracy"] == pytest.approx(
        100 * read_results(run / "teacher")["test/acc"], abs=1e-4
    )


def test_the_printed_table_is_the_files_and_its_csv_has_the_same_figures(run, tmp_path, capsys):
    copy_of(run, "with|bar", wrong=100)
    for ending in ("md", "csv", "json"):
        args = ["compare", str(run), str(tmp_path / "with|bar"), f"--out={tmp_path}/t.{ending}"]
        assert main([*args, "--baselines=none"]) == 0
    head, _, first, second, *_ = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in head.split("|")] == [
        "",
        "",
        "accuracy",
        "difference to run",
        "",
        "",
    ]
    accuracy = read_results(run / "student")["test/acc"]
    assert f"| {100 * accuracy:.1f} [" in first
    assert len(first) == len(second) == len(head)
    assert " −11.1 [−13.2, −9.1] | lower |" in second
    markdown = (tmp_path / "t.md").read_text()
    assert markdown.splitlines()[3] == second.replace("with|bar", r"with\|bar")
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in table] == rows
    assert [row["verdict"] for row in rows] == ["", "lower"]


@pytest.mark.slow
def test_base_novel_and_their_harmonic_mean_are_compared_and_a_probe_knows_base_classes_alone(
    tmp_path,
):
    for seed in (1, 2):
        split = ["--data.init_args.protocol=base_to_novel", f"--seed_everything={seed}"]
        assert fit_teacher(tmp_path / f"teacher_{seed}", *split) == 0
        assert run_test(tmp_path / f"teacher_{seed}") == 0
    rows, notes = compare(tmp_path, *(tmp_path / f"teacher_{seed}" for seed in (1, 2)), kind="all")
    results = [read_results(tmp_path / f"teacher_{seed}") for seed in (1, 2)]
    keys = {"all": "test/acc", "base": "test/base_acc", "novel": "test/novel_acc", "HM": "test/hm"}
    for classes, key in keys.items():
        first, second, *others = (row for row in rows if row["classes"] == classes)
        assert [first["accuracy"], second["accuracy"]] == pytest.approx(
            [100 * r[key] for r in results], abs=1e-3
        )
        assert second["difference"] == pytest.approx(
            100 * (results[1][key] - results[0][key]), abs=1e-3
        )
        assert second["difference_low"] < second["difference"] < second["difference_high"]
        assert [row["row"] for row in others] == [
            f"linear probe: tiny-teacher, weights glyphs, 80 labels, of teacher_{seed}"
            for seed in ((1, 2) if classes == "base" else ())
        ]
    assert any(note.startswith("transductive") for note in notes)
    assert len([note for note in notes if "has no test of" in note]) == 2


def test_the_same_files_behind_a_link_are_the_same_test_images(run, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    for name in ("photos", "link", "others"):
        copy = copy_of(run, f"of_{name}")
        found = [
            replace(each, source=f"{tmp_path}/{name}/{each.source}")
            for each in read_predictions(copy)
        ]
        write_predictions(copy, found)
    runs = {name: str(tmp_path / f"of_{name}") for name in ("photos", "link", "others")}
    assert main(["compare", runs["photos"], runs["link"], "--baselines=none"]) == 0
    capsys.readouterr()
    code = main(["compare", runs["photos"], runs["others"], "--baselines=none"])
    refused(capsys, code, "of_others was tested on other test images than")


def test_equal_files_in_another_folder_are_the_same_test_images_and_what_differs_is_named(
    run, tmp_path, capsys
):
    for name in ("photos", "copies", "others"):
        copy = copy_of(run, f"of_{name}")
        (tmp_path / name).mkdir()
        predictions = read_predictions(copy)
        for number, p in enumerate(predictions):
            (tmp_path / name / f"{number}.png").write_text(f"image {number}")
            predictions[number] = replace(p, source=f"{tmp_path}/{name}/{number}.png")
        write_predictions(copy, predictions)
    (tmp_path / "others/5.png").write_text("another image")
    runs = {name: str(tmp_path / f"of_{name}") for name in ("photos", "copies", "others")}
    assert main(["compare", runs["photos"], runs["copies"], "--baselines=none"]) == 0
    capsys.readouterr()
    code = main(["compare", runs["photos"], runs["others"], "--baselines=none"])
    refused(capsys, code, f"{tmp_path}/others/5.png of class")
    # an equal file with another label
    first, *rest = read_predictions(tmp_path / "of_copies")
    changed = replace(first, label_number=(first.label_number + 1) % 10, label="another")
    write_predictions(tmp_path / "of_copies", [changed, *rest])
    code = main(["compare", runs["photos"], runs["copies"], "--baselines=none"])
    refused(capsys, code, f"{tmp_path}/copies/0.png of class another")


# --- what is refused ---


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "gone"], "run folder gone does not exist"),
        (["run", "few=gone_*"], "run folder gone_* does not exist"),
        (["run", "run"], "two of the runs are called run: name them"),
        (["few=run,other"], "two runs of few have the same seed"),
        (
            ["run", "untested"],
            "untested was not tested: python -m kdpl test --config untested/config.yaml",
        ),
        (["run", "images"], "images was tested on other test images than run (898 and 899)"),
        (["run", "classes"], "classes was tested on other classes than run (none and zero)"),
        (
            ["split"],
            "split has no predictions among the base or the novel classes alone, test it again",
        ),
        (["strange"], "if you trust the run, give --trust"),
        (
            ["run", "--out=table.txt"],
            "--out table.txt has an unknown ending, expected one of .md, .csv, .json",
        ),
        (["run", "--out=run"], "--out run is a folder"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(
    args, words, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    others = {
        name: copy_of(run, name)
        for name in ("other", "untested", "images", "classes", "split", "strange")
    }
    (others["untested"] / "test_predictions.csv").unlink()
    write_predictions(others["images"], read_predictions(others["images"])[1:])
    change_vectors(others["classes"], class_names=("none", *map(str, range(1, 10))))
    change_vectors(others["split"], num_base=5)
    config = others["strange"] / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    settings["data"]["init_args"]["dataset"] = {"class_path": "stranger.Reader", "init_args": {}}
    config.write_text(yaml.safe_dump(settings))
    capsys.readouterr()
    refused(capsys, main(["compare", *args, "--baselines=none"]), words)
