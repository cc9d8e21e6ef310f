import csv
import re
import shutil
import subprocess
from contextlib import chdir
from itertools import product
from unittest.mock import patch

import published_files as files
import pytest
from benchmark_tree import make_tree
from campaigns import BASE_TO_NOVEL, FEW, ROOT, ROWS, SOURCE, in_this_process, make_trees, written
from runs import error_line, files_of, rows_of

from kdpl.__main__ import main
from kdpl.benchmark.published import METHODS
from kdpl.benchmark.steps import read_all


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_trees(tmp_path_factory.mktemp("data"))


def benchmark(file, data, out, *more):
    with patch("kdpl.benchmark.runner.in_subprocess", in_this_process):
        return main(["benchmark", str(file), f"--root={data}", f"--out={out}", *map(str, more)])


def faults(capsys, *args):
    """The errors of a command that is refused."""
    capsys.readouterr()
    assert main(["benchmark", *map(str, args)]) == 1
    err = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in err)
    return err


def test_missing_data_weights_and_files_are_named_before_anything_is_started(
    data, tmp_path, capsys
):
    rows = ROWS.replace(
        "of: teacher,", "of: teacher, options: [--model.init_args.clip.pretrained=gone.pt],"
    )
    file, out = written(tmp_path, BASE_TO_NOVEL, rows), f"--out={tmp_path / 'out'}"
    found = faults(capsys, file, f"--root={tmp_path / 'data'}", out)
    for fault, word in zip(found, ("dtd", "oxford_pets", "gone.pt"), strict=True):
        assert word in fault
    found = faults(capsys, file, out, "--rows", "teacher")
    assert found == [
        f"error: dataset {name} needs the folder of all datasets: give it as --root"
        for name in ("dtd", "oxford_pets")
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "required: --out: "),
        (["--seeds", "5"], "seed 5.* 1, 2"),
        (["--datasets", "dtd", "pets"], "pets"),
        (["--rows", "pupil"], "pupil"),
        (["--trainer.epochs=3"], "trainer.epochs"),
    ],
)
def test_a_wrong_option_is_one_line(args, words, data, tmp_path, capsys):
    out = [f"--out={tmp_path / 'out'}", f"--root={data}"] if args else []
    (fault,) = faults(capsys, written(tmp_path, BASE_TO_NOVEL), *out, *args)
    assert re.search(words, fault)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A finished campaign; no test changes it."""
    folder = tmp_path_factory.mktemp("whole")
    file, out = (
        written(folder, BASE_TO_NOVEL.replace("[1, 2]", "[1]").replace(", oxford_pets", "")),
        folder / "out",
    )
    with chdir(ROOT):
        assert benchmark(file, data, out, *FEW) == 0
    return file, out


def test_a_run_leaves_its_files_and_a_second_start_does_nothing(whole, data, capsys):
    file, out = whole
    before = files_of(out)
    run = {
        name.rpartition("/")[2]
        for name in before
        if name.startswith("base_to_novel/dtd/seed_1/teacher/")
    }
    assert run >= {
        "config.yaml",
        "fit.log",
        "command.json",
        "results.json",
        "test.json",
        "test.log",
    }
    capsys.readouterr()
    assert benchmark(file, data, out, *FEW) == 0
    assert capsys.readouterr().out == f"all 2 runs are done: python -m kdpl table {out}\n"
    assert {name: each[1] for name, each in files_of(out).items()} == {
        name: each[1] for name, each in before.items()
    }


def test_a_table_is_printed_and_written_in_all_formats(whole, capsys):
    _, out = whole
    capsys.readouterr()
    assert main(["table", str(out)]) == 0
    assert capsys.readouterr().out == (out / "table.md").read_text()
    (line,) = [
        line
        for line in (out / "table.md").read_text().splitlines()
        if "**student, distilled** †" in line
    ]
    for figure in METHODS["promptkd"].by_dataset["dtd"].values():
        assert f"[{figure:.2f}, " in line
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert len(rows) == 4 * 3
    metrics = {r.row: r.metrics for r in read_all(out)}
    # linear probes know the base classes alone
    known = [row for row in rows if row["mean"]]
    assert [row["row"].partition(",")[0] for row in known] == [
        *["teacher"] * 3,
        *["student"] * 3,
        "linear probe: tiny-student",
        "linear probe: tiny-teacher",
    ]
    for row in known:
        assert float(row["mean"]) == pytest.approx(
            100 * metrics[row["row"]][row["metric"]], abs=1e-4
        )


def test_a_finished_run_of_other_settings_is_refused_by_name(whole, data, capsys):
    file, out = whole
    other = [arg.replace("shots=1", "shots=2") for arg in FEW]
    (fault,) = faults(capsys, file, f"--root={data}", f"--out={out}", *other, "--rows", "teacher")
    assert (
        f"the run in {out}/base_to_novel/dtd/seed_1/teacher was made from something else" in fault
    )
    assert "shots" in fault
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
    assert re.fullmatch(
        rf"failed: {fit}: .*images/a/.* \(log: {tmp_path}/out/{fit}.log\)", failed[0]
    )
    assert failed[1].endswith(f"it needs {fit}, which failed")


@pytest.mark.slow
def test_a_teacher_of_a_source_is_tested_elsewhere_and_a_student_uses_the_new_class_names(
    data, tmp_path, capsys
):
    out = tmp_path / "out"
    assert benchmark(written(tmp_path, SOURCE), data, out, *FEW) == 0, capsys.readouterr()
    found = list(read_all(out))
    tested = {
        ("cross_dataset", "dtd"),
        ("domain_generalization", "imagenet"),
        ("domain_generalization", "imagenet_a"),
    }
    assert {(r.protocol, r.dataset) for r in found} == tested
    assert (len(found), any(r.transductive for r in found)) == (6, False)
    labels = {
        "cross_dataset/dtd": {"apple", "Zebra crossing", "sea or lake"},
        "domain_generalization/imagenet_a": {"goldfish", "great white shark"},
    }
    for folder, row in product(labels, ("teacher", "student")):
        predictions = rows_of(out / folder / "seed_1" / row / "test_predictions.csv")
        assert {each["label"].replace("_", " ") for each in predictions} == labels[folder]
        assert {each["prediction"].replace("_", " ") for each in predictions} <= labels[folder]
    assert main(["table", str(out)]) == 0
    assert "missing" not in (out / "table.md").read_text()


@pytest.mark.slow
def test_a_campaign_takes_published_teachers_that_were_imported_before(data, tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "dtd.pt"
    files.write(file, files.teacher_state(name="tiny-teacher"))
    depths = {"vision": files.VISION_DEPTH, "text": files.TEXT_DEPTH}
    settings = [
        *[f"--config={ROOT}/configs/{name}.yaml" for name in ("data/dtd", "data/base_to_novel")],
        *[f"--config={ROOT}/configs/{name}.yaml" for name in ("trainer/cpu", "teacher/quickstart")],
        *[f"--model.init_args.{tower}_prompts.depth={n}" for tower, n in depths.items()],
        *(f"--data.init_args.root={data}", "--seed_everything=1", *FEW),
    ]
    teacher = out / "base_to_novel/dtd/seed_1/teacher"
    assert main(["import", "teacher", str(file), *settings, f"--out={teacher}"]) == 0
    imported = files_of(teacher)["class_vectors.safetensors"]
    campaign = written(tmp_path, BASE_TO_NOVEL)
    command = [campaign, data, out, *FEW, "--seeds", "1", "--datasets", "dtd"]
    assert benchmark(*command) == 0, capsys.readouterr()
    assert sorted(r.row for r in read_all(out) if not r.probe) == ["student", "teacher"]
    assert files_of(teacher)["class_vectors.safetensors"] == imported


def test_a_table_needs_the_folder_of_a_campaign_and_intact_results(whole, tmp_path, capsys):
    assert main(["table", str(tmp_path)]) == 1
    error_line(capsys, "not the folder of a campaign")
    out = shutil.copytree(whole[1], tmp_path / "out")
    damaged = out / "base_to_novel/dtd/seed_1/teacher/results.json"
    damaged.write_text("{}")
    assert main(["table", str(out)]) == 1
    error_line(capsys, f"{damaged} is not the result of a campaign's run")


@pytest.mark.slow
def test_what_is_reproduced_stands_beside_the_published_figures_and_their_averages(
    tmp_path, capsys
):
    for name in ("dtd", "eurosat"):
        make_tree(name, tmp_path)
    text = (ROOT / "configs/benchmark/reproduce.yaml").read_text()
    for published in ("teacher/promptsrc_vit_l14", "student/promptkd_vit_b16"):
        text = text.replace(published, f"{published.split('/')[0]}/quickstart")
    file = written(tmp_path, text.replace("trainer/gpu", "trainer/cpu"), rows="")
    with chdir(ROOT):
        assert benchmark(file, tmp_path, tmp_path / "out", *FEW, "--seeds", "1") == 0
    assert main(["table", str(tmp_path / "out")]) == 0
    of_students = [
        line for line in capsys.readouterr().out.splitlines() if "**student, distilled** †" in line
    ]
    figures = METHODS["promptkd"].by_dataset
    expected = [[*figures[name].values()] for name in ("dtd", "eurosat")]
    # of both: means, and their harmonic mean
    expected.append([91.69, 76.725, 83.543])
    for line, (base, novel, harmonic_mean) in zip(of_students, expected, strict=True):
        assert re.search(rf"\[{base:.2f}, .*\[{novel:.2f}, .*\[{harmonic_mean:.2f}, ", line), line


def test_make_reproduce_downloads_runs_and_prints_or_asks_for_the_folder():
    def make(*args):
        command = ["make", "--dry-run", "reproduce", *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    said = make("DATA=a b", "SEEDS=1 2", "SETTINGS=--trainer.max_epochs=2")
    campaign = "-m kdpl benchmark configs/benchmark/reproduce.yaml"
    for part in (
        '-m kdpl data download $name --root "a b" || exit',
        f'{campaign} --root "a b" --out runs/reproduce \\\n\t--seeds 1 2 --trainer.max_epochs=2\n',
        "-m kdpl table runs/reproduce\n",
    ):
        assert part in said
    refused = subprocess.run(
        ["make", "reproduce", "DATA="], capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert refused.stderr.startswith("make reproduce needs the folder of the datasets")


def test_make_table_runs_the_campaign_of_the_readme():
    said = subprocess.run(
        ["make", "--dry-run", "table"], capture_output=True, text=True, check=True
    ).stdout
    assert "-m kdpl benchmark configs/benchmark/quickstart.yaml --out runs/table\n" in said
    assert "-m kdpl table runs/table\n" in said
