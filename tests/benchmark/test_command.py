import csv
import re
import shutil
from contextlib import chdir
from itertools import product
from textwrap import dedent, indent
from unittest.mock import patch

import pytest
from benchmark_tree import make_tree
from campaigns import BASE_TO_NOVEL, FEW, ROOT, ROWS, SOURCE, in_this_process, make_trees, written
from runs import files_of, refused, rows_of

from kdpl.__main__ import main
from kdpl.benchmark.steps import read_all
from kdpl.benchmark.table import FIGURES
from kdpl.runtime.configs import read_config
from kdpl.runtime.predictions import read_results


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_trees(tmp_path_factory.mktemp("data"))


def benchmark(file, data, out, *more):
    with patch("kdpl.benchmark.runner.in_subprocess", in_this_process):
        return main(["benchmark", str(file), f"--root={data}", f"--out={out}", *map(str, more)])


def errors_of(capsys, *args):
    """The errors of a command that is refused."""
    capsys.readouterr()
    assert main(["benchmark", *map(str, args)]) == 1
    err = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in err)
    return err


def test_missing_data_weights_and_files_are_named_before_anything_is_started(
    data, tmp_path, capsys
):
    gone = "of: teacher, options: [--model.init_args.clip.pretrained=gone.pt],"
    rows = ROWS.replace("of: teacher,", gone)
    file, out = written(tmp_path, BASE_TO_NOVEL, rows), f"--out={tmp_path / 'out'}"
    errors = errors_of(capsys, file, f"--root={tmp_path / 'data'}", out)
    for error, word in zip(errors, ("dtd", "oxford_pets", "gone.pt"), strict=True):
        assert word in error
    errors = errors_of(capsys, file, out, "--rows", "teacher")
    assert [error.split()[2] for error in errors] == ["dtd", "oxford_pets"]
    assert all("give it as --root" in error for error in errors)
    assert not (tmp_path / "out").exists()


def test_a_wrong_option_is_one_line(data, tmp_path, capsys):
    file, places = written(tmp_path, BASE_TO_NOVEL), [f"--out={tmp_path / 'out'}", f"--root={data}"]
    for args, words in (
        ([], "required: --out: "),
        ([*places, "--seeds", "5"], "seed 5.* 1, 2"),
        ([*places, "--datasets", "dtd", "pets"], "pets"),
        ([*places, "--rows", "pupil"], "pupil"),
        ([*places, "--trainer.epochs=3"], "trainer.epochs"),
    ):
        (error,) = errors_of(capsys, file, *args)
        assert re.search(words, error)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A finished campaign; no test changes it."""
    folder = tmp_path_factory.mktemp("whole")
    one = BASE_TO_NOVEL.replace("[1, 2]", "[1]").replace(", oxford_pets", "")
    file, out = written(folder, one), folder / "out"
    with chdir(ROOT):
        assert benchmark(file, data, out, *FEW) == 0
    return file, out


def test_a_run_leaves_its_files_and_a_second_start_does_nothing(whole, data, capsys):
    file, out = whole
    before = files_of(out)
    run = out / "base_to_novel/dtd/seed_1/teacher"
    for name in ("config.yaml", "fit.log", "command.json", "results.json", "test.json", "test.log"):
        assert (run / name).is_file()
    capsys.readouterr()
    assert benchmark(file, data, out, *FEW) == 0
    assert capsys.readouterr().out == f"all 2 runs are done: python -m kdpl table {out}\n"
    # whose times change whenever an older filelock takes them
    after = files_of(out)
    assert {name: after[name][1] for name in after} == {name: before[name][1] for name in before}


def test_a_table_is_printed_and_written_in_all_formats(whole, capsys):
    _, out = whole
    capsys.readouterr()
    assert main(["table", str(out)]) == 0
    assert capsys.readouterr().out == (out / "table.md").read_text()
    lines = (out / "table.md").read_text().splitlines()
    (line,) = [line for line in lines if "**student, distilled** †" in line]
    for figure in FIGURES["dtd"].values():
        assert f"[{figure:.2f}, " in line
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert len(rows) == 4 * 3
    metrics = {r.row: r.metrics for r in read_all(out)}
    # linear probes know the base classes alone
    measured = [row for row in rows if row["mean"]]
    names = [row["row"].partition(",")[0] for row in measured]
    assert names[:6] == ["teacher"] * 3 + ["student"] * 3
    assert names[6:] == ["linear probe: tiny-student", "linear probe: tiny-teacher"]
    for row in measured:
        expected = 100 * metrics[row["row"]][row["metric"]]
        assert float(row["mean"]) == pytest.approx(expected, abs=1e-4)


def test_a_finished_run_of_other_settings_is_refused_by_name(whole, data, capsys):
    file, out = whole
    other = [arg.replace("shots=1", "shots=2") for arg in FEW]
    options = (f"--root={data}", f"--out={out}", *other, "--rows", "teacher")
    (error,) = errors_of(capsys, file, *options)
    assert f"{out}/base_to_novel/dtd/seed_1/teacher was made from something else" in error
    assert "shots" in error
    # another command for the same settings is accepted
    same = [*FEW, "--trainer.log_every_n_steps=7", "--rows", "teacher"]
    assert benchmark(file, data, out, *same) == 0


def test_a_failed_run_is_reported_with_its_log_and_its_last_error(tmp_path, capsys):
    make_tree("dtd", tmp_path)
    for number in (1, 2):
        (tmp_path / f"dtd/images/a/{number}.jpg").write_bytes(b"no image")
    file = written(tmp_path, BASE_TO_NOVEL.replace(", oxford_pets", ""))
    assert benchmark(file, tmp_path, tmp_path / "out", *FEW, "--seeds", "1") == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 4
    fit = "base_to_novel/dtd/seed_1/teacher/fit"
    said = rf"failed: {fit}: .*images/a/.* \(log: {tmp_path}/out/{fit}.log\)"
    assert re.fullmatch(said, failed[0])
    assert failed[1].endswith(f"it needs {fit}, which failed")


@pytest.mark.slow
def test_a_teacher_of_a_source_is_tested_elsewhere_and_a_student_uses_the_new_class_names(
    data, tmp_path, capsys
):
    out = tmp_path / "out"
    assert benchmark(written(tmp_path, SOURCE), data, out, *FEW) == 0, capsys.readouterr()
    results = list(read_all(out))
    tested = {("cross_dataset", "dtd"), ("domain_generalization", "imagenet")}
    tested.add(("domain_generalization", "imagenet_a"))
    assert {(r.protocol, r.dataset) for r in results} == tested
    assert (len(results), any(r.transductive for r in results)) == (6, False)
    labels = {
        "cross_dataset/dtd": {"apple", "Zebra crossing", "sea or lake"},
        "domain_generalization/imagenet_a": {"goldfish", "great white shark"},
    }
    for folder, row in product(labels, ("teacher", "student")):
        predictions = rows_of(out / folder / "seed_1" / row / "test_predictions.csv")
        for column in ("label", "prediction"):
            names = {prediction[column].replace("_", " ") for prediction in predictions}
            assert names <= labels[folder]
            assert column == "prediction" or names == labels[folder]
    assert main(["table", str(out)]) == 0
    assert "missing" not in (out / "table.md").read_text()


def test_a_table_needs_the_folder_of_a_campaign_and_intact_results(whole, tmp_path, capsys):
    refused(capsys, main(["table", str(tmp_path)]), "not the folder of a campaign")
    out = shutil.copytree(whole[1], tmp_path / "out")
    damaged = out / "base_to_novel/dtd/seed_1/teacher/results.json"
    damaged.write_text("{}")
    said = f"{damaged} is not the result of a campaign's run"
    refused(capsys, main(["table", str(out)]), said)


def test_a_row_of_several_teachers_runs_from_end_to_end_on_miniatures(
    data, tmp_path, capsys, monkeypatch
):
    text = (ROOT / "configs/benchmark/beyond.yaml").read_text()
    row = (ROOT / "examples/several_teachers.py").read_text().partition("it is the row\n\n")[2]
    row = indent(dedent(row.partition('"""')[0]), "  ")
    text = text.replace("per_dataset:", f"{row}per_dataset:")
    for published, miniature in (
        ("configs/teacher/promptsrc_vit_l14.yaml", "configs/teacher/quickstart.yaml"),
        ("configs/student/promptkd_vit_b16.yaml", "configs/student/quickstart.yaml"),
        ("EVA02-L-14,merged2b_s4b_b131k", "tiny-resnet,glyphs"),
        ("configs/trainer/gpu.yaml", "configs/trainer/cpu.yaml"),
    ):
        assert published in text
        text = text.replace(published, miniature)
    monkeypatch.syspath_prepend(ROOT / "examples")
    file, out = written(tmp_path, text, ""), tmp_path / "out"
    few = ("--datasets", "dtd", "--seeds", "1", *FEW)
    assert benchmark(file, data, out, *few) == 0, capsys.readouterr()
    runs = out / "base_to_novel/dtd/seed_1"
    for row in ("teacher", "student", "both"):
        assert read_results(runs / row)
    both = read_config(str(runs / "both/config.yaml"))["model"]["init_args"]
    target = both["target"]["init_args"]
    assert (target["others"], target["by_confidence"]) == (["tiny-resnet,glyphs"], True)
    assert (both["teacher"], both["loss"]["weight"]) == (str(runs / "teacher"), 200)
    teacher = read_config(str(runs / "teacher/config.yaml"))["model"]["init_args"]
    assert teacher["method"]["init_args"]["attributes"] == ["pattern", "color", "design"]
    assert main(["table", str(out)]) == 0
    assert "student of it and a zero-shot EVA-CLIP" in capsys.readouterr().out
