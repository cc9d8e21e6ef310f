import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_job
import yaml
from kdpl.runtime.processes import run_step
from runs import DATA, SHORT, STUDENT, TEACHER, configs, files_of, rows_of, start_process
from runs import test as run_test

from kdpl.__main__ import main
from kdpl.runtime import slurm
from kdpl.runtime.predictions import read_results

RUN = [
    "run",
    *DATA,
    *(f"--teacher={arg.removeprefix('--config=')}" for arg in TEACHER),
    *(f"--student={arg.removeprefix('--config=')}" for arg in STUDENT),
    *SHORT,
]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A finished run with seed 3 and 4 shots."""
    out = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        # as many threads as the tests themselves have: the order of a sum is part of its result
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main([*RUN, "--seed=3", "--data.init_args.shots=4", f"--out={out}"]) == 0
    return out


def numbers(folder):
    rows = rows_of(folder / "metrics.csv")
    times = ("train/images_per_s", "train/data_wait")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def test_the_stages_by_hand_give_the_same_to_the_last_digit(whole_run, tmp_path):
    shots = ["--seed_everything=3", "--data.init_args.shots=4"]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert main(["fit", *DATA, *TEACHER, *SHORT, *shots, f"--out={teacher}"]) == 0
    assert (
        main(["fit", *DATA, *STUDENT, *SHORT, *shots, f"--model.init_args.teacher={teacher}", f"--out={student}"]) == 0
    )
    for stage in (teacher, student):
        assert run_test(stage) == 0
        theirs = whole_run / stage.name
        assert (stage / "test.json").read_bytes() == (theirs / "test.json").read_bytes()
        assert (stage / "test_predictions.csv").read_bytes() == (theirs / "test_predictions.csv").read_bytes()
        assert numbers(stage) == numbers(theirs)
    for name in ("teacher/class_vectors.safetensors", "teacher/prompts.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole_run / name).read_bytes()
    for name in ("model.safetensors", "classifier.json"):
        assert (student / "classifier" / name).read_bytes() == (whole_run / "student/classifier" / name).read_bytes()


def test_options_and_seed_reach_both_stages(whole_run):
    for stage in ("teacher", "student"):
        config = yaml.safe_load((whole_run / stage / "config.yaml").read_text())
        assert config["data"]["init_args"]["shots"] == 4
        assert config["seed_everything"] == 3
        assert config["trainer"]["max_epochs"] == 2
    assert config["model"]["init_args"]["teacher"] == str(whole_run / "teacher")


def test_the_results_are_those_of_the_four_tests(whole_run):
    results = json.loads((whole_run / "results.json").read_text())
    folders = ["zero_shot/teacher", "teacher", "zero_shot/student", "student"]
    assert list(results.values()) == [read_results(whole_run / folder) for folder in folders]
    assert len({row["test/acc"] for row in results.values()}) >= 3
    assert {row["images"] for row in results.values()} == {899}


def test_the_untuned_clips_are_those_of_the_stages(whole_run):
    accuracies = [read_results(whole_run / "zero_shot" / stage)["test/acc"] for stage in ("teacher", "student")]
    # what an evaluation of the shipped weights gives, whatever was tuned
    assert accuracies == pytest.approx([0.695, 0.667], abs=0.01)


def test_the_folder_holds_all_of_the_run_and_nothing_half_written(whole_run):
    files = set(files_of(whole_run))
    for stage in ("teacher", "student"):
        for name in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt", "test.json", "figures/confusion.png"):
            assert f"{stage}/{name}" in files
    assert {"student/figures/test_images.png", "report.html"} <= files
    assert not [name for name in files if "/." in name or name.startswith(".")]


def test_a_second_start_takes_away_what_one_left_that_was_killed_at_its_very_end(whole_run, capsys):
    before = files_of(whole_run)
    for folder in (whole_run, whole_run / "teacher", whole_run / "student"):
        (folder / ".lock").write_text("process 1 on gone")
    (whole_run / "teacher/checkpoints/previous.ckpt").touch()
    assert main([*RUN, "--seed=3", "--data.init_args.shots=4", f"--out={whole_run}"]) == 0
    assert files_of(whole_run) == before
    (whole_run / "student/.lock").write_text("process 1 on gone")
    assert main(["fit", f"--config={whole_run}/student/config.yaml"]) == 0
    assert "is finished" in capsys.readouterr().err
    assert files_of(whole_run) == before


def test_a_second_start_says_so_and_touches_nothing(whole_run, capsys):
    before = files_of(whole_run)
    assert main([*RUN, "--seed=3", "--data.init_args.shots=4", f"--out={whole_run}"]) == 0
    out, err = capsys.readouterr()
    assert "is finished: nothing to do" in "".join(out.splitlines())
    assert "student, distilled" in out
    assert err == ""
    assert files_of(whole_run) == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("--seed=4", "holds a run with other settings"),
        ("--data.init_args.shots=5", "data.init_args.shots is 4 there and 5 here"),
    ],
    ids=["seed", "option"],
)
def test_a_folder_with_a_run_of_other_settings_is_refused_and_left_alone(
    change, word, whole_run, capsys, in_this_process
):
    before = files_of(whole_run)
    assert main([*RUN, change, f"--out={whole_run}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert word in err
    assert files_of(whole_run) == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run"], ["--teacher", "--student", "--out", "run --help"]),
        (["run", *DATA, "--student=s.yaml", "--out=out"], ["--teacher"]),
        ([*RUN, "--out=out", "--seed=x"], ["--seed", "'x'"]),
        ([*RUN, "--out=out", "--teacher=gone.yaml"], ["gone.yaml", "does not exist"]),
        ([*RUN, "--out=out", "--student=broken.yaml"], ["broken.yaml", "not YAML"]),
    ],
    ids=["nothing", "no teacher", "seed", "missing config", "broken config"],
)
def test_a_wrong_start_is_one_line_and_nothing_is_written(args, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text("model: [")
    assert main(args) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert [p.name for p in tmp_path.iterdir()] == ["broken.yaml"]


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main([*RUN, f"--out={tmp_path}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: --out {tmp_path} holds something else than a run (thesis.tex): ")
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_run_into_a_folder_is_refused_while_the_first_runs(tmp_path, capsys, in_this_process, monkeypatch):
    def step(function, argument):
        # in a process of its own, since a process does not lock itself out
        code = (
            f"from kdpl.runtime.run_lock import RunLock; from pathlib import Path; RunLock(Path({str(tmp_path)!r}), 0)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        refused.append("another process is running into" in done.stderr)
        return 1

    refused = []
    monkeypatch.setattr("kdpl.cli.run.check_fits", lambda _: sys.exit(0))
    monkeypatch.setattr("kdpl.cli.run._do", lambda *_: step(None, None))
    assert main([*RUN, f"--out={tmp_path}"]) == 1
    assert refused == [True]
    assert not (tmp_path / ".lock").exists()


@pytest.fixture
def in_this_process(monkeypatch):
    """Steps without processes of their own, which are slow to start and whose output cannot be read here."""

    def call(function, argument):
        with pytest.raises(SystemExit) as end:
            function(argument)
        return end.value.code

    monkeypatch.setattr("kdpl.cli.run.in_own_process", call)
    monkeypatch.setattr("sys.argv", ["kdpl"])


def test_a_mistake_in_the_students_settings_is_found_before_the_teacher_is_tuned(tmp_path, capsys, in_this_process):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("model: {init_args: {kd_wieght: 1}}")
    assert main([*RUN, f"--student={wrong}", f"--out={tmp_path / 'out'}"]) == 1
    err = capsys.readouterr().err
    assert "'kd_weight'" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("code", [0, 128 + slurm.SIGNAL], ids=["between two steps", "of which a starting step died"])
def test_a_notice_requeues_the_job_and_begins_no_step(code, tmp_path, monkeypatch, capsys):
    asked = slurm_job.pretend(monkeypatch, tmp_path)
    codes = iter([0, code])

    def step(function, argument):
        if code == 0 or function is run_step:
            slurm_job.send()
        return next(codes)

    slurm.listen()
    monkeypatch.setattr("kdpl.cli.run.in_own_process", step)
    try:
        assert main([*RUN, f"--out={tmp_path / 'out'}"]) == slurm.REQUEUED
    finally:
        slurm_job.forget()
    assert asked.read_text() == "requeue 17\n"
    assert len(list(codes)) == (1 if code == 0 else 0)
    assert "goes back into the queue, to go on with" in capsys.readouterr().err


def started(out, *more):
    """A run in a process of its own that trains until it is stopped."""
    return start_process([*RUN, *more, f"--out={out}"])


def wait_for(file, process, seconds=60):
    end = time.monotonic() + seconds
    while not file.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, f"{file} did not come"
        time.sleep(0.05)


def test_ctrl_c_ends_the_run_in_seconds_with_one_line_and_a_kill_leaves_what_a_next_start_goes_on_from(tmp_path):
    out = tmp_path / "out"
    forever = ["--trainer.max_epochs=3000"]
    first = started(out, *forever)
    wait_for(out / "teacher/checkpoints/last.ckpt", first)
    # as a terminal does: to every process of the group
    os.killpg(first.pid, signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130
    assert err.startswith("interrupted: start the same command again to go on (after ")
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1
    checkpoint = out / "teacher/checkpoints/last.ckpt"
    written = checkpoint.stat().st_mtime_ns

    second = started(out, *forever)
    end = time.monotonic() + 60
    while checkpoint.stat().st_mtime_ns == written and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(second.pid, signal.SIGKILL)
    _, err = second.communicate(timeout=60)
    assert f"going on from {checkpoint}" in err
    assert not (out / "teacher/class_vectors.safetensors").exists()
    epochs = [int(row["epoch"]) for row in rows_of(out / "teacher/metrics.csv") if row["train/loss"]]
    assert epochs == sorted(epochs)
    assert epochs[0] == 0


def test_a_run_killed_in_stage_2_goes_on_there_and_ends_as_an_uncut_one(whole_run, tmp_path, in_this_process, capsys):
    out = tmp_path / "out"
    # a kill leaves files that are whole or not there, so this is what one in stage 2 leaves
    shutil.copytree(whole_run, out)
    shutil.rmtree(out / "student" / "classifier")
    for name in ("student/test.json", "student/test_predictions.csv", "zero_shot/student/test.json", "results.json"):
        (out / name).unlink()
    for file in out.glob("*/config.yaml"):
        file.write_text(file.read_text().replace(str(whole_run), str(out)))
    teacher = files_of(out / "teacher")
    # what only says how it is computed may differ, as the devices of a job do that is submitted again
    assert main([*RUN, "--seed=3", "--data.init_args.shots=4", "--data.init_args.num_workers=1", f"--out={out}"]) == 0
    text, err = capsys.readouterr()
    assert [n for n in "123456" if f"{n}/6 " in text] == ["2", "4", "6"]
    assert f"going on from {out}/student/checkpoints/last.ckpt" in err
    assert files_of(out / "teacher") == teacher
    for name in ("student/test.json", "student/classifier/model.safetensors", "results.json"):
        assert (out / name).read_bytes() == (whole_run / name).read_bytes()


def test_base_and_novel_classes_have_columns_of_their_own(tmp_path, capsys, monkeypatch, in_this_process):
    monkeypatch.setenv("COLUMNS", "100")
    overlay = configs("data/base_to_novel.yaml")
    assert main([*RUN, *overlay, "--trainer.max_epochs=1", f"--out={tmp_path / 'out'}"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("base", "novel", "HM", "transductive"))
    row = read_results(tmp_path / "out/student")
    base, novel = row["test/base_acc"], row["test/novel_acc"]
    assert row["test/hm"] == pytest.approx(2 * base * novel / (base + novel), rel=1e-6)
    assert f"{100 * row['test/hm']:.1f}" in text
