import os
import shlex
import subprocess

import pytest
from benchmark_tree import make_tree
from campaigns import BASE_TO_NOVEL, FEW, ROOT, ROWS, make_trees, started, written

from kdpl.__main__ import main
from kdpl.benchmark.results import read_all


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_trees(tmp_path_factory.mktemp("data"))


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

    monkeypatch.setattr("kdpl.cli.benchmark.in_own_process", call)


@pytest.mark.parametrize("code", [1, 130, 143])
def test_a_check_that_is_ended_from_outside_ends_the_command_likewise(code, data, tmp_path, monkeypatch):
    monkeypatch.setattr("kdpl.cli.benchmark.in_own_process", lambda *_: code)
    file = written(tmp_path, BASE_TO_NOVEL)
    assert main(["benchmark", str(file), f"--root={data}", f"--out={tmp_path / 'out'}"]) == code
    assert not (tmp_path / "out").exists()


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


def test_a_published_file_that_is_not_there_is_named(data, tmp_path, capsys, checks_here):
    rows = ROWS.replace('title: "teacher, tuned",', 'import: "{dataset}_{seed}.pt",')
    faults = refused(capsys, written(tmp_path, BASE_TO_NOVEL, rows), f"--root={data}", f"--out={tmp_path / 'out'}")
    assert len(faults) == 4
    assert faults[0].startswith("error: row teacher imports dtd_1.pt, which does not exist: ")


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
    """A campaign with one finished teacher, run as an element of an array job."""
    folder = tmp_path_factory.mktemp("one")
    file, out = written(folder, BASE_TO_NOVEL), folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        process = started(file, f"--root={data}", f"--out={out}", *FEW, "--slurm", "--sbatch=--time=10")
        text, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert f"bash {out}/slurm/submit.sh" in text
        assert not (out / "base_to_novel").exists()
        patch.chdir(folder)
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "0", "OMP_NUM_THREADS": "1"}
        subprocess.run(["bash", out / "slurm/level_0.sbatch"], check=True, env=environment, stdout=subprocess.DEVNULL)
    return file, out


def test_an_array_element_does_its_own_run_alone(one_run):
    _, out = one_run
    assert [(r.dataset, r.seed, r.row) for r in read_all(out)] == [("dtd", 1, "teacher")]
    assert "#SBATCH --time=10" in (out / "slurm/level_0.sbatch").read_text()


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
