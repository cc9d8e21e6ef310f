"""``make slurm``: job files and commands in a real Slurm. Not among the tests that ``make test`` and check-slow run."""

import json
import sys
from pathlib import Path

import pytest
from campaigns import BASE_TO_NOVEL, FEW, ROWS, make_trees, written
from differences import differences
from runs import CONFIGS, DATA, STAGES, TEACHER, configs, wait_for
from slurm.cluster import Cluster, missing

from kdpl.benchmark.steps import read_all

ROOT = Path(__file__).parents[2]
SHORT = [
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=3",
    "--trainer.enable_progress_bar=false",
]
ONE = ["--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=1"]
TWO = ["--ntasks-per-node=2", "--gres=gpu:2", "--cpus-per-task=1"]
REQUEUED = "is requeued, to resume"

pytestmark = pytest.mark.skipif(missing() != "", reason=missing())


@pytest.fixture(scope="module")
def slurm():
    cluster = Cluster()
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def _no_job_stays(slurm):
    yield
    slurm.clear()


def submit(slurm, script, *args, options, log, **more):
    variables = {"PYTHON": sys.executable, "WANDB_MODE": "offline", **more}
    return slurm.submit(
        ROOT / "slurm" / script, *args, options=[*options, f"--output={log}"], cwd=ROOT, **variables
    )


def kdpl(slurm, *args):
    """Run a command outside of any job."""
    slurm.run(sys.executable, "-m", "kdpl", *map(str, args), cwd=ROOT, WANDB_MODE="offline")


def require_same(slurm, tmp_path, out, *args):
    """Compare a job's folder with that of the same command outside of Slurm, into a folder of the same name."""
    job = tmp_path / "job"
    out.rename(job)
    kdpl(slurm, *args)
    # another id in W&B; and of an epoch that was resumed within, a row has the means of the later steps
    said = differences(out, job)
    assert not [
        each for each in said if "wandb" not in each and "metrics.csv: train/" not in each
    ], said


def require_one_run(out):
    """One id in W&B, and nothing that an interruption left."""
    ids = {folder.name.rpartition("-")[2] for folder in (out / "wandb").glob("offline-run-*")}
    assert ids == {(out / "wandb_id").read_text().strip()}
    assert not list(out.rglob("hpc_ckpt*"))
    assert [file.name for file in (out / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_fit_of_two_tasks_gives_what_two_processes_outside_of_slurm_give(slurm, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    fit = [*DATA, *TEACHER, *configs("logger/wandb.yaml"), *SHORT, f"--out={out}"]
    (done,) = slurm.finish(submit(slurm, "fit.sbatch", *fit, options=TWO, log=log))
    assert done["JobState"] == "COMPLETED", log.read_text()
    require_one_run(out)
    require_same(slurm, tmp_path, out, "fit", *fit, "--trainer.devices=2", "--trainer.num_nodes=1")
    test = [sys.executable, "-m", "kdpl", "test", f"--config={out}/config.yaml"]
    tasks = ["--ntasks-per-node=2", "--ntasks=2"]
    slurm.run("srun", *tasks, *test, cwd=ROOT, WANDB_MODE="offline")
    results = json.loads((out / "test.json").read_text())
    kdpl(slurm, *test[3:], "--trainer.devices=1")
    assert json.loads((out / "test.json").read_text()) == results
    assert results["images"] == 899


@pytest.mark.parametrize("tasks", [ONE, TWO], ids=["one task", "two tasks"])
def test_a_run_that_is_requeued_in_each_stage_ends_as_one_that_was_not(tasks, slurm, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    run = [*DATA, *STAGES, *SHORT[2:], "--trainer.max_epochs=8", "--out", out]
    job = submit(slurm, "run.sbatch", *run, options=tasks, log=log)
    for restarts, stage in enumerate(("teacher", "student")):
        wait_for((out / stage / "checkpoints/last.ckpt").exists)
        slurm.signal(job)
        wait_for(lambda: log.read_text().count(f"job {job} {REQUEUED}") > restarts)  # noqa: B023
        wait_for(lambda: slurm.hasten(job)[0]["JobState"] == "RUNNING")
    (done,) = slurm.finish(job)
    assert done["JobState"] == "COMPLETED", log.read_text()
    assert done["Restarts"] == "2"
    devices = [f"--trainer.devices={2 if tasks is TWO else 1}", "--trainer.num_nodes=1"]
    require_same(slurm, tmp_path, out, "run", *run, *devices)


def test_an_array_does_all_pairs(slurm, tmp_path):
    args = ["--config", CONFIGS / "trainer/cpu.yaml", *STAGES, *SHORT]
    pairs = {"DATASETS": "digits", "SEEDS": "1 2", "OUT": str(tmp_path)}
    options = [*ONE, "--array=0-2"]
    job = submit(slurm, "array.sbatch", *args, options=options, log=tmp_path / "%a.log", **pairs)
    states = {each["ArrayTaskId"]: each["JobState"] for each in slurm.finish(job)}
    said = [(tmp_path / f"{number}.log").read_text() for number in range(3)]
    assert states == {"0": "COMPLETED", "1": "COMPLETED", "2": "FAILED"}, said[0]
    assert "element 2 of 2 pairs of dataset and seed: give --array=0-1" in said[2]
    model = "student/classifier/model.safetensors"
    first, second = (tmp_path / f"digits/seed_{seed}" / model for seed in (1, 2))
    assert first.read_bytes() != second.read_bytes()


def test_a_killed_job_leaves_no_lock_and_a_refused_requeue_is_reported(slurm, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    fit = [*DATA, *TEACHER, "--trainer.max_epochs=3000", f"--out={out}"]
    fit += ["--trainer.enable_progress_bar=false"]
    job = submit(slurm, "fit.sbatch", *fit, options=ONE, log=log)
    wait_for((out / "checkpoints/last.ckpt").exists)
    slurm.run("scancel", "--signal=KILL", job)
    slurm.finish(job)
    job = submit(slurm, "fit.sbatch", *fit, options=[*ONE, "--no-requeue"], log=log)
    wait_for(lambda: "resuming from" in log.read_text())
    slurm.run("scontrol", "update", f"JobId={job}", "Requeue=0")
    slurm.signal(job)
    (done,) = slurm.finish(job)
    text = log.read_text()
    assert done["JobState"] == "FAILED", text
    assert f"error: job {job} cannot be requeued (" in text
    assert f"{out}/checkpoints/last.ckpt is kept)" in text


def test_an_array_shares_the_runs_of_a_campaign_also_when_requeued(slurm, tmp_path):
    data, out = make_trees(tmp_path / "data"), tmp_path / "out"
    file = written(
        tmp_path, BASE_TO_NOVEL.replace("dtd, oxford_pets", "dtd").replace("1, 2", "1"), ROWS
    )
    args = [file, f"--root={data}", f"--out={out}", *FEW]
    options = [*ONE, "--array=0-1"]
    job = submit(slurm, "benchmark.sbatch", *args, options=options, log=tmp_path / "%a.log")
    # not by rglob, which fails on what is renamed while it looks
    wait_for((out / "base_to_novel/dtd/seed_1/teacher/fit.log").is_file)
    slurm.signal(job, "--batch")
    finished = slurm.finish(job)
    logs = "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert {each["JobState"] for each in finished} == {"COMPLETED"}, logs
    assert max(int(each["Restarts"]) for each in finished) >= 1, logs
    done = [(run.dataset, run.seed, run.row) for run in read_all(out) if not run.probe]
    assert done == [("dtd", 1, "student"), ("dtd", 1, "teacher")], logs
