import csv
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from benchmark_tree import make_tree
from runs import files_of, rows_of

from kdpl.__main__ import main
from kdpl.benchmark.published import METHODS
from kdpl.benchmark.results import read_all

ROOT = Path(__file__).parents[2]
ROWS = """
configs: [configs/trainer/cpu.yaml]
rows:
  teacher: {title: "teacher, tuned", teacher: configs/teacher/quickstart.yaml}
  student: {title: "**student, distilled**", student: configs/student/quickstart.yaml, of: teacher, published: promptkd}
"""
BASE_TO_NOVEL = "protocols: [base_to_novel]\ndatasets: [dtd, oxford_pets]\nseeds: [1, 2]\n"
SOURCE = """
protocols: [cross_dataset, domain_generalization]
source: imagenet
datasets: [dtd]
variants: [imagenet_a]
"""
FEW = [
    "--data.init_args.shots=1",
    "--data.init_args.num_workers=0",
    "--trainer.max_epochs",
    "1",
    "--trainer.check_val_every_n_epoch=1",
]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("dtd", "oxford_pets", "imagenet", "imagenet_a"):
        make_tree(name, root)
    return root


def written(folder, text, rows=ROWS):
    file = folder / "mine.yaml"
    file.write_text(text + rows)
    return file


def started(*args):
    command = [sys.executable, "-m", "kdpl", "benchmark", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results_in(out):
    return {file: file.stat().st_mtime_ns for file in out.glob("*/**/results.json")}


def test_killed_at_any_moment_a_campaign_is_completed_by_the_same_command_and_nothing_is_done_twice(data, tmp_path):
    out = tmp_path / "out"
    command = (written(tmp_path, BASE_TO_NOVEL), f"--root={data}", f"--out={out}", *FEW)
    said, done = [], []
    for enough in (1, 4):
        process = started(*command)
        end = time.monotonic() + 60
        while len(results_in(out)) < enough:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(random.uniform(0, 2))  # noqa: S311 - any moment will do
        process.send_signal(signal.SIGKILL)
        said.append(process.communicate(timeout=30)[0])
        done.append({file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name in DONE})
    process = started(*command)
    text, err = process.communicate(timeout=120)
    assert process.returncode == 0, text + err
    said.append(text)
    assert "all 8 runs are done: " in text
    assert len(results_in(out)) == 8
    for before in done:
        assert before.items() <= {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name in DONE}.items()
    finished = re.findall(r"^\[\d/8\] (\S+): ", "".join(said), re.MULTILINE)
    assert len(finished) == len(set(finished))
    # each task was begun once, but for the two that were cut
    assert sum(file.read_text().count("test/hm") for file in out.rglob("test.log")) <= 8 + 2
    assert not list(out.rglob(".*.json.*"))
    assert_tables(out)
    assert_second_start_does_nothing(command, out)


DONE = ("results.json", "class_vectors.safetensors", "classifier.json")


def assert_tables(out):
    process = subprocess.run(
        [sys.executable, "-m", "kdpl", "table", out], capture_output=True, text=True, check=True, cwd=out
    )
    assert process.stderr == ""
    assert process.stdout == (out / "table.md").read_text()
    lines = [line for line in process.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 * 2
    assert "missing" not in process.stdout
    assert "† transductive" in process.stdout
    for name in ("dtd", "oxford_pets"):
        (line,) = [line for line in lines if line.replace("\\", "").startswith(f"| {name} | **student, distilled** †")]
        for figure in METHODS["promptkd"].by_dataset[name].values():
            assert f"[{figure:.2f}, " in line
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert len(rows) == 3 * 2 * 3
    assert {row["seeds"] for row in rows} == {"2"}
    for row in rows:
        if row["dataset"] != "average":
            found = [r for r in read_all(out) if (r.dataset, r.row) == (row["dataset"], row["row"])]
            mean = sum(100 * r.metrics[row["metric"]] for r in found) / len(found)
            assert float(row["mean"]) == pytest.approx(mean, abs=1e-4)
    assert (out / "table.tex").read_text().count(r"\textbf{student, distilled}") == 3


def assert_second_start_does_nothing(command, out):
    before = files_of(out)
    process = started(*command)
    text, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert text.startswith("all 8 runs are done")
    after = {name: value for name, value in files_of(out).items() if not name.startswith("table")}
    assert after.items() <= before.items()


def test_what_is_tuned_on_a_source_is_tested_elsewhere_and_a_student_takes_over_the_new_class_names(data, tmp_path):
    out = tmp_path / "out"
    process = started(written(tmp_path, SOURCE), f"--root={data}", f"--out={out}", *FEW)
    text, err = process.communicate(timeout=120)
    assert process.returncode == 0, text + err
    found = {(r.protocol, r.dataset, r.row): r for r in read_all(out)}
    assert sorted(found) == [
        (protocol, dataset, row)
        for protocol, datasets in (("cross_dataset", ["dtd"]), ("domain_generalization", ["imagenet", "imagenet_a"]))
        for dataset in datasets
        for row in ("student", "teacher")
    ]
    assert not any(r.transductive for r in found.values())
    labels = {"dtd": {"apple", "Zebra crossing", "sea or lake"}, "imagenet_a": {"goldfish", "great white shark"}}
    for folder, dataset in (("cross_dataset/dtd", "dtd"), ("domain_generalization/imagenet_a", "imagenet_a")):
        for row in ("teacher", "student"):
            answers = rows_of(out / folder / "seed_1" / row / "test_predictions.csv")
            assert {answer["label"].replace("_", " ") for answer in answers} == labels[dataset]
            assert {answer["prediction"].replace("_", " ") for answer in answers} <= labels[dataset]
    config = yaml.safe_load((out / "cross_dataset/dtd/seed_1/student/config.yaml").read_text())
    assert config["data"]["init_args"]["dataset"] == "dtd"
    assert config["model"]["init_args"]["teacher"] == str(out / "source/imagenet/seed_1/teacher")
    assert main(["table", str(out)]) == 0
    assert "missing" not in (out / "table.md").read_text()


def refused(capsys, *args):
    assert main(["benchmark", *map(str, args)]) == 1
    err = capsys.readouterr().err
    assert all(line.startswith("error: ") for line in err.splitlines())
    return err.splitlines()


@pytest.fixture
def checks_here(monkeypatch):
    """Checks without processes of their own, whose output cannot be read here."""

    def call(function, argument):
        with pytest.raises(SystemExit) as end:
            function(argument)
        return end.value.code

    monkeypatch.setattr("kdpl.benchmark.command.in_own_process", call)


def test_data_and_weights_that_are_not_there_are_named_before_anything_is_begun(tmp_path, capsys, checks_here):
    rows = ROWS.replace("of: teacher,", "of: teacher, options: [--model.init_args.clip.pretrained=gone.pt],")
    file = written(tmp_path, BASE_TO_NOVEL, rows)
    faults = refused(capsys, file, f"--root={tmp_path / 'data'}", f"--out={tmp_path / 'out'}")
    assert len(faults) == 3
    assert [any(word in fault for fault in faults) for word in ("dataset dtd", "dataset oxford_pets", "gone.pt")] == [
        True,
        True,
        True,
    ]
    faults = refused(capsys, file, f"--out={tmp_path / 'out'}", "--rows", "teacher")
    assert [fault.partition(":")[2] for fault in faults] == [
        f" dataset {name} needs the folder of all datasets: give it as --root" for name in ("dtd", "oxford_pets")
    ]
    assert not (tmp_path / "out").exists()


def test_a_setting_that_cannot_be_is_one_line_for_all_runs(data, tmp_path, capsys, checks_here):
    file = written(tmp_path, BASE_TO_NOVEL)
    faults = refused(capsys, file, f"--root={data}", f"--out={tmp_path / 'out'}", "--trainer.epochs=3")
    assert len(faults) == 1
    assert "trainer.epochs" in faults[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["--out"]),
        (["--out=out", "--seeds", "5"], ["seed 5", "1, 2"]),
        (["--out=out", "--datasets", "dtd", "pets"], ["pets"]),
        (["--out=out", "--rows", "pupil"], ["pupil"]),
        (["--out=out", "--only", "base_to_novel/dtd/seed_3"], ["seed_3", "base_to_novel/dtd/seed_1/teacher"]),
    ],
    ids=["no folder", "seed", "dataset", "row", "task"],
)
def test_a_wrong_start_is_one_line(args, words, tmp_path, capsys):
    (fault,) = refused(capsys, written(tmp_path, BASE_TO_NOVEL), *args)
    for word in words:
        assert word in fault


@pytest.fixture(scope="module")
def one_run(data, tmp_path_factory):
    """A campaign with one finished teacher."""
    folder = tmp_path_factory.mktemp("one")
    file, out = written(folder, BASE_TO_NOVEL), folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        process = started(file, f"--root={data}", f"--out={out}", *FEW, "--only", "base_to_novel/dtd/seed_1/teacher")
        text, err = process.communicate(timeout=60)
    assert process.returncode == 0, text + err
    return file, out


def test_a_finished_run_of_other_settings_is_refused_by_name(one_run, data, capsys, checks_here, tmp_path):
    file, out = one_run
    other = [arg.replace("shots=1", "shots=2") for arg in FEW]
    (fault,) = refused(capsys, file, f"--root={data}", f"--out={out}", *other)
    assert f"{out}/base_to_novel/dtd/seed_1/teacher holds a run with other settings" in fault
    assert "shots" in fault
    # what says the same in other words is no reason
    same = [*FEW, "--trainer.log_every_n_steps=7"]
    args = [str(file), f"--root={data}", f"--out={out}", *same, "--only", "base_to_novel/dtd/seed_1/teacher"]
    assert main(["benchmark", *args]) == 0


def test_a_failed_run_is_reported_with_its_log_and_its_last_error(one_run, tmp_path):
    file, _ = one_run
    for name in ("dtd", "oxford_pets"):
        make_tree(name, tmp_path)
    (tmp_path / "dtd/images/a/1.jpg").write_bytes(b"no image")
    (tmp_path / "dtd/images/a/2.jpg").write_bytes(b"no image")
    process = started(
        file, f"--root={tmp_path}", f"--out={tmp_path / 'out'}", *FEW, "--seeds", "1", "--datasets", "dtd"
    )
    text, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")
    log = tmp_path / "out/base_to_novel/dtd/seed_1/teacher/fit.log"
    failed = [line for line in text.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 4
    assert failed[0].startswith("failed: base_to_novel/dtd/seed_1/teacher/fit: ")
    assert failed[0].endswith(f"(log: {log})")
    assert "images/a/" in failed[0]
    assert failed[1].endswith("it needs base_to_novel/dtd/seed_1/teacher/fit, which failed")


def test_an_array_element_can_be_run_by_hand(one_run, data, tmp_path, capsys, checks_here):
    file, _ = one_run
    out = tmp_path / "out"
    args = [str(file), f"--root={data}", f"--out={out}", *FEW, "--seeds", "1", "--slurm", "--sbatch=--time=10"]
    assert main(["benchmark", *args]) == 0
    assert f"bash {out}/slurm/submit.sh" in capsys.readouterr().out
    assert not (out / "base_to_novel").exists()
    script = out / "slurm/level_0.sbatch"
    assert "#SBATCH --time=10" in script.read_text()
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    subprocess.run(["bash", script], check=True, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert {(r.dataset, r.row) for r in read_all(out)} == {("oxford_pets", "teacher")}


def test_a_table_needs_the_folder_of_a_campaign(tmp_path, capsys):
    assert main(["table", str(tmp_path)]) == 1
    assert "not the folder of a campaign" in capsys.readouterr().err


def test_a_table_is_printed_and_written_in_the_format_that_is_asked_for(one_run, tmp_path, capsys):
    _, out = one_run
    assert main(["table", str(out), "--format=latex", f"--out={tmp_path / 'mine.tex'}"]) == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "mine.tex").read_text() == (out / "table.tex").read_text()
    assert "missing (0 of 2 seeds)" in text
    assert "(1 of 2 seeds)" in text


def test_make_table_runs_the_campaign_of_the_readme():
    said = subprocess.run(["make", "--dry-run", "table"], capture_output=True, text=True, check=True).stdout
    commands = [shlex.split(line)[2:] for line in said.splitlines() if "-m kdpl" in line]
    assert commands == [
        ["kdpl", "benchmark", "configs/benchmark/quickstart.yaml", "--out", "runs/table"],
        ["kdpl", "table", "runs/table"],
    ]
