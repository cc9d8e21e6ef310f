import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from report_pages import change_vectors, put_together
from resampling import bootstrap_difference, bootstrap_harmonic_mean
from runs import fit_teacher, refused
from runs import test as run_test
from scipy.stats import ttest_ind, ttest_rel

from kdpl.__main__ import main
from kdpl.report.compare import ComparisonRow, compare_runs, compared
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
    difference = paired_difference(first, second)
    assert difference.value == pytest.approx(second.mean() - first.mean())
    paired = ttest_rel(second[0], first[0]).confidence_interval(0.95)
    assert difference.interval == pytest.approx(paired)
    resampled = bootstrap_difference(first[0] == 1, second[0] == 1)
    assert difference.interval == pytest.approx(resampled, abs=0.006)


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
    both = paired_difference(first, second, same_seeds=True).interval
    assert both == pytest.approx(expected, abs=0.006)
    means = (scores.mean(axis=0, keepdims=True) for scores in (first, second))
    assert np.ptp(paired_difference(*means).interval) < np.ptp(both)


def rows_of(*scores, seeds=(1,)):
    rows = [
        ComparisonRow(name, [*seeds], {"acc": acc}) for name, acc in zip("ab", scores, strict=True)
    ]
    return compared(rows)


def test_equal_rows_have_no_difference_and_a_mean_has_seeds_in_its_interval():
    same = binary((2, 40), 3)
    first, second = rows_of(same, same.copy(), seeds=(1, 2))
    # 40 images without a difference, of which 7.2 % or fewer differ with a confidence of 95 %
    share = second.difference.interval[1]
    assert second.difference == (0, (-share, share))
    assert (1 - share) ** 40 == pytest.approx(0.05)
    assert (first.verdict, second.verdict) == ("", "not clear")
    low, high = first.accuracy.interval
    assert low < first.accuracy.value < high


@pytest.mark.parametrize(
    ("gained", "lost", "verdict"), [(30, 5, "higher"), (5, 30, "lower"), (20, 15, "not clear")]
)
def test_a_difference_is_named_if_its_interval_excludes_zero(gained, lost, verdict):
    first, second = np.zeros((1, 200)), np.zeros((1, 200))
    second[0, :gained], first[0, gained : gained + lost] = 1, 1
    low, high = bootstrap_difference(first[0] == 1, second[0] == 1)
    expected = "higher" if low > 0 else "lower" if high < 0 else "not clear"
    assert rows_of(first, second)[1].verdict == verdict == expected


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
    shares = [scores[key].mean() for key in ("acc", "base_acc", "novel_acc", "hm")]
    mean = 2 * base.mean() * novel.mean() / (base.mean() + novel.mean())
    assert shares == pytest.approx([(labels == 0).mean(), base.mean(), novel.mean(), mean])
    expected = bootstrap_harmonic_mean((base.sum(), 60), (novel.sum(), 180))
    difference = paired_difference(np.zeros((1, 240)), scores["hm"][None])
    assert difference.interval == pytest.approx(expected, abs=0.008)
    wrong = [replace(p, half_prediction_number=9) for p in predictions]
    assert not scores_of(run, SimpleNamespace(predictions=wrong))["hm"].any()


# --- runs ---


@pytest.fixture
def run(tmp_path, teacher_run, student_run):
    return put_together(tmp_path / "run", teacher_run, student_run)


def copy_of(run, name, seed=1, wrong=0):
    """A copy of a run's student, of another seed, with that number of correct predictions made wrong."""
    copy = shutil.copytree(run / "student", run.parent / name)
    text = (copy / "config.yaml").read_text()
    changed = text.replace("seed_everything: 1\n", f"seed_everything: {seed}\n")
    (copy / "config.yaml").write_text(changed)
    predictions = read_predictions(copy)
    correct = [i for i, p in enumerate(predictions) if p.correct]
    for i in correct[:wrong]:
        other = (predictions[i].label_number + 1) % 10
        predictions[i] = replace(predictions[i], prediction_number=other)
    write_predictions(copy, predictions)
    return copy


def compare(*args, kind="none"):
    """The rows and notes of a comparison."""
    return compare_runs([*map(str, args)], kind)


def test_runs_of_several_seeds_are_one_row_whose_mean_is_compared(run, tmp_path):
    for seed, wrong in ((2, 30), (3, 60), (4, 90)):
        copy_of(run, f"few_{seed}", seed, wrong)
    two = f"two={tmp_path}/few_3,{tmp_path}/few_2"
    rows, notes = compare(run, f"few={tmp_path}/few_*", two)
    assert [(row.name, row.seeds) for row in rows] == [("run", 1), ("few", 3), ("two", 2)]
    accuracy = read_results(run / "student")["test/acc"]
    lost = np.array([0, 60 / 899, 45 / 899])
    assert [row.accuracy.value for row in rows] == pytest.approx(accuracy - lost, abs=1e-5)
    assert [row.difference.value for row in rows[1:]] == pytest.approx(-lost[1:], abs=1e-5)
    assert "over images and seeds" in notes[0]
    # a run without a student is that of its teacher
    (row, *_), _ = compare(run / "teacher")
    accuracy = read_results(run / "teacher")["test/acc"]
    assert row.accuracy.value == pytest.approx(accuracy, abs=1e-6)


def test_the_printed_table_is_the_files(run, tmp_path, capsys):
    copy_of(run, "with|bar", wrong=100)
    args = ["compare", str(run), str(tmp_path / "with|bar"), f"--out={tmp_path}/t.md"]
    assert main([*args, "--baselines=none"]) == 0
    head, _, first, second, *_ = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in head.split("|")]
    assert cells == ["", "", "accuracy", "difference to run", "", ""]
    accuracy = read_results(run / "student")["test/acc"]
    assert f"| {100 * accuracy:.1f} [" in first
    assert len(first) == len(second) == len(head)
    assert " −11.1 [−13.2, −9.1] | lower |" in second
    markdown = (tmp_path / "t.md").read_text()
    assert markdown.splitlines()[3] == second.replace("with|bar", r"with\|bar")


@pytest.mark.slow
def test_base_novel_and_their_harmonic_mean_are_compared_and_a_probe_knows_base_classes_alone(
    tmp_path,
):
    teachers = [tmp_path / f"teacher_{seed}" for seed in (1, 2)]
    for seed, teacher in enumerate(teachers, 1):
        split = ["--data.init_args.protocol=base_to_novel", f"--seed_everything={seed}"]
        assert fit_teacher(teacher, *split) == 0
        assert run_test(teacher) == 0
    rows, notes = compare(*teachers, kind="all")
    results = [read_results(teacher) for teacher in teachers]
    keys = {"all": "test/acc", "base": "test/base_acc", "novel": "test/novel_acc", "HM": "test/hm"}
    for classes, key in keys.items():
        first, second, *probes = (row for row in rows if row.classes == classes)
        expected = [result[key] for result in results]
        values = [first.accuracy.value, second.accuracy.value, second.difference.value]
        assert values == pytest.approx([*expected, expected[1] - expected[0]], abs=1e-5)
        low, high = second.difference.interval
        assert low < second.difference.value < high
        assert [row.name for row in probes] == [
            f"linear probe: tiny-teacher, weights glyphs, 80 labels, of teacher_{seed}"
            for seed in ((1, 2) if classes == "base" else ())
        ]
    assert any(note.startswith("transductive") for note in notes)
    assert len([note for note in notes if "has no test of" in note]) == 2


def in_folder(run, name):
    """A copy of a run that was tested on files of a folder, which need not exist."""
    copy = copy_of(run, f"of_{name}")
    folder = run.parent / name
    moved = [replace(p, source=f"{folder}/{p.index}.png") for p in read_predictions(copy)]
    write_predictions(copy, moved)
    return copy


def test_the_same_files_behind_a_link_are_the_same_test_images_and_what_differs_is_named(
    run, tmp_path, capsys
):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    photos, link, others = (in_folder(run, name) for name in ("photos", "link", "others"))

    def code(first, second):
        capsys.readouterr()
        return main(["compare", str(first), str(second), "--baselines=none"])

    assert code(photos, link) == 0
    refused(capsys, code(photos, others), f"{tmp_path}/others/0.png of class")
    # the same file with another label
    first, *rest = read_predictions(link)
    changed = replace(first, label_number=(first.label_number + 1) % 10, label="another")
    write_predictions(link, [changed, *rest])
    refused(capsys, code(photos, link), f"{tmp_path}/photos/0.png of class another")


# --- what is refused ---


def test_what_cannot_be_compared_is_refused_in_a_line(run, monkeypatch, capsys):
    names = ("other", "untested", "images", "classes", "split")
    copies = {name: copy_of(run, name) for name in names}
    (copies["untested"] / "test_predictions.csv").unlink()
    write_predictions(copies["images"], read_predictions(copies["images"])[1:])
    change_vectors(copies["classes"], class_names=("none", *map(str, range(1, 10))))
    change_vectors(copies["split"], num_base=5)
    monkeypatch.chdir(run.parent)
    capsys.readouterr()
    for args, words in (
        (["run", "gone"], "run folder gone does not exist"),
        (["run", "few=gone_*"], "run folder gone_* does not exist"),
        (["run", "run"], "two of the runs are called run"),
        (["few=run,other"], "two runs of few have the same seed"),
        (["run", "untested"], "untested was not tested"),
        (["run", "images"], "images was tested on other test images than run (898 and 899)"),
        (["run", "classes"], "classes was tested on other classes than run (none and zero)"),
        (["split"], "split has no predictions among the base or the novel classes alone"),
        (["run", "--out=run"], "--out run is a folder"),
    ):
        refused(capsys, main(["compare", *args, "--baselines=none"]), words)
