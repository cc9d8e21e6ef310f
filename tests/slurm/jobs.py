"""``make slurm``: what job files and commands do in a real Slurm. Not among the tests that ``make test`` runs."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from campaigns import BASE_TO_NOVEL, FEW, ROWS, make_trees, written
from runs import CONFIGS, DATA, TEACHER, configs, curves_of
from slurm.cluster import Cluster, missing

from kdpl.benchmark.results import read_all

ROOT = Path(__file__).parents[2]
VECTORS, WEIGHTS = "class_vectors.safetensors", "classifier/model.safetensors"
SHORT = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=3", "--trainer.enable_progress_bar=false"]
ONE = ["--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=1"]
TWO = ["--ntasks-per-node=2", "--gres=gpu:2", "--cpus-per-task=1"]
ORDERS = ["--teacher", CONFIGS / "teacher/quickstart.yaml", "--student", CONFIGS / "student/quickstart.yaml", *SHORT]

SLOW = """
import time
from lightning.pytorch import Callback

class SlowSteps(Callback):
    def on_train_batch_start(self, *_):
        time.sleep(0.1)
"""

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
    env = {"PYTHON": sys.executable, "WANDB_MODE": "offline", **more}
    return slurm.submit(ROOT / "slurm" / script, *args, options=[*options, f"--output={log}"], cwd=ROOT, env=env)


def kdpl(slurm, *args):
    """A command outside of any job."""
    env = {**slurm.env, "WANDB_MODE": "offline"}
    command = [sys.executable, "-m", "kdpl", *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done


def wait_for(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def is_at(job, restarts, state):
    return (job["Restarts"], job["JobState"]) == (restarts, state)


def require_one_run(out):
    """One run folder with one id in W&B, and nothing that a cut left."""
    ids = {folder.name.rpartition("-")[2] for folder in (out / "wandb").glob("offline-run-*")}
    assert ids == {(out / "wandb_id").read_text().strip()}
    assert not list(out.rglob("hpc_ckpt*"))
    assert [file.name for file in (out / "checkpoints").iterdir()] == ["last.ckpt"]
    assert not (out / ".lock").exists()


def test_two_tasks_give_what_two_processes_without_slurm_give(slurm, tmp_path):
    fit = [*DATA, *TEACHER, *configs("logger/wandb.yaml"), *SHORT]
    out, log = tmp_path / "slurm", tmp_path / "log"
    job = submit(slurm, "fit.sbatch", *fit, f"--out={out}", options=TWO, log=log)
    (done,) = slurm.finish(job)
    assert done["JobState"] == "COMPLETED", log.read_text()
    assert "Starting with 2 processes" in log.read_text()
    require_one_run(out)
    alone = tmp_path / "alone"
    kdpl(slurm, "fit", *fit, f"--out={alone}", "--trainer.devices=2")
    assert (out / VECTORS).read_bytes() == (alone / VECTORS).read_bytes()
    assert curves_of(out) == curves_of(alone)
    test = [sys.executable, "-m", "kdpl", "test", f"--config={out}/config.yaml"]
    slurm.run("srun", "--ntasks-per-node=2", "--ntasks=2", *test, cwd=ROOT)
    two = json.loads((out / "test.json").read_text())
    kdpl(slurm, *test[3:], "--trainer.devices=1")
    assert json.loads((out / "test.json").read_text()) == two
    assert two["images"] == 899


def test_a_job_that_needs_more_than_its_time_comes_to_its_end_through_the_queue(slurm, tmp_path, capsys):
    fit = [*DATA, *TEACHER, *configs("logger/wandb.yaml"), "--trainer.enable_progress_bar=false"]
    fit += ["--trainer.max_epochs=30", "--trainer.check_val_every_n_epoch=30"]
    out, log = tmp_path / "slurm", tmp_path / "log"
    # 300 steps in over 30 s on a machine however fast, and the notice 25 s after each start
    (tmp_path / "slow.py").write_text(SLOW)
    slow = ["--trainer.callbacks+=slow.SlowSteps", f"--out={out}"]
    options = [*ONE, "--time=1", "--signal=USR1@35"]
    job = submit(slurm, "fit.sbatch", *fit, *slow, options=options, log=log, PYTHONPATH=str(tmp_path))
    wait_for((out / "checkpoints").exists, f"no training begins: {log.read_text() if log.exists() else ''}")
    moment = random.uniform(0, 5)  # noqa: S311
    time.sleep(moment)
    slurm.signal(job)
    (done,) = slurm.finish(job)
    text = log.read_text()
    assert done["JobState"] == "COMPLETED", text
    assert int(done["Restarts"]) >= 2, f"one through the time limit, one after {moment:.1f} s"
    assert text.count(f"job {job} goes back into the queue, to go on with {out}") == int(done["Restarts"])
    require_one_run(out)
    alone = tmp_path / "alone"
    kdpl(slurm, "fit", *fit, f"--out={alone}")
    assert (out / VECTORS).read_bytes() == (alone / VECTORS).read_bytes()
    assert curves_of(out) == curves_of(alone)
    with capsys.disabled():
        print(f"\n{done['Restarts']} restarts")


def test_an_array_does_all_pairs_and_a_run_cut_at_any_moment_ends_as_its_element(slurm, tmp_path):
    log = tmp_path / "%a.log"
    args = ["--config", CONFIGS / "trainer/cpu.yaml", *ORDERS]
    pairs = {"DATASETS": "digits", "SEEDS": "1 2", "OUT": str(tmp_path)}
    job = submit(slurm, "array.sbatch", *args, options=[*ONE, "--array=0-2"], log=log, **pairs)
    known = slurm.finish(job)
    states = {each["ArrayTaskId"]: each["JobState"] for each in known}
    assert states == {"0": "COMPLETED", "1": "COMPLETED", "2": "FAILED"}, (tmp_path / "0.log").read_text()
    assert "element 2 of 2 pairs of dataset and seed: give --array=0-1" in (tmp_path / "2.log").read_text()
    first, second = (tmp_path / "digits" / f"seed_{seed}" for seed in (1, 2))
    for run in (first, second):
        assert (run / "report.html").is_file()
    assert (first / "student" / WEIGHTS).read_bytes() != (second / "student" / WEIGHTS).read_bytes()
    # the same as the first, told at random moments, between the steps of the run as well
    out, log = tmp_path / "run", tmp_path / "run.log"
    job = submit(slurm, "run.sbatch", *DATA, *ORDERS, "--out", out, options=ONE, log=log)
    for restarts in ("0", "1"):
        wait_for(lambda: is_at(slurm.hasten(job)[0], restarts, "RUNNING"), "the run does not run")  # noqa: B023
        time.sleep(random.uniform(3, 8))  # noqa: S311
        slurm.signal(job, "--batch")
        wait_for(lambda: not is_at(slurm.fields(job)[0], restarts, "RUNNING"), "the run goes on")  # noqa: B023
    (done,) = slurm.finish(job)
    assert done["JobState"] == "COMPLETED", log.read_text()
    assert done["Restarts"] == "2"
    for stage, name in (("teacher", VECTORS), ("student", WEIGHTS)):
        assert (out / stage / name).read_bytes() == (first / stage / name).read_bytes()
    assert json.loads((out / "results.json").read_text()) == json.loads((first / "results.json").read_text())


def test_a_run_in_a_job_of_two_tasks_starts_its_steps_with_srun(slurm, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    job = submit(slurm, "run.sbatch", *DATA, *ORDERS, "--out", out, options=TWO, log=log)
    (done,) = slurm.finish(job)
    assert done["JobState"] == "COMPLETED", log.read_text()
    assert log.read_text().count("Starting with 2 processes") == 6
    assert json.loads((out / "results.json").read_text())["student, distilled"]["images"] == 899


def test_a_killed_job_leaves_no_lock_and_a_refused_requeue_is_said(slurm, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    fit = [*DATA, *TEACHER, "--trainer.enable_progress_bar=false", "--trainer.max_epochs=40", f"--out={out}"]
    job = submit(slurm, "fit.sbatch", *fit, options=ONE, log=log)
    wait_for((out / "checkpoints/last.ckpt").exists, "no checkpoint")
    slurm.run("scancel", "--signal=KILL", job, cwd=ROOT)
    slurm.finish(job)
    # the job is over for Slurm, which cannot take it back then
    job = submit(slurm, "fit.sbatch", *fit, options=[*ONE, "--no-requeue"], log=log)
    wait_for(lambda: "going on from" in log.read_text(), "it does not go on")
    slurm.run("scontrol", "update", f"JobId={job}", "Requeue=0", cwd=ROOT)
    slurm.signal(job)
    (done,) = slurm.finish(job)
    text = log.read_text()
    assert done["JobState"] == "FAILED", text
    assert f"error: job {job} could not be put back into the queue (" in text
    assert f"{out}/checkpoints/last.ckpt is kept: submit it again to go on with {out}" in text
    assert (out / "checkpoints/last.ckpt").is_file()


def test_what_would_wait_for_ever_is_one_sentence(slurm, tmp_path):
    fit = [sys.executable, "-m", "kdpl", "fit", *DATA, *TEACHER, *SHORT, f"--out={tmp_path / 'out'}"]

    def refused(*command):
        done = slurm.run(*command, cwd=ROOT, check=False)
        assert done.returncode != 0
        return done.stderr

    text = refused("srun", "--ntasks=2", "--ntasks-per-node=2", *fit)
    assert "trainer.devices is 1 and trainer.num_nodes is 1, but Slurm started 2 processes on 1 node" in text
    text = refused("srun", "--ntasks=2", *fit, "--trainer.devices=2")
    assert "give --ntasks-per-node in the place of --ntasks" in text
    text = refused("salloc", "--job-name=mine", "--ntasks-per-node=2", "--nodes=1", *fit, "--trainer.devices=2")
    assert "the Slurm job has 2 tasks and this is none of them: put srun before the command" in text
    assert not (tmp_path / "out").exists()


def test_a_campaigns_jobs_do_all_its_runs_also_through_the_queue(slurm, tmp_path):
    data, out = make_trees(tmp_path / "data"), tmp_path / "out"
    file = written(tmp_path, BASE_TO_NOVEL.replace("dtd, oxford_pets", "dtd").replace("1, 2", "1"), ROWS)
    sbatch = [f"--sbatch={option}" for option in ONE]
    kdpl(slurm, "benchmark", file, f"--root={data}", f"--out={out}", *FEW, "--slurm", *sbatch)
    done = slurm.run("bash", str(out / "slurm/submit.sh"), cwd=tmp_path)
    last = done.stdout.split()[-1]
    (first,) = {job.partition("_")[0] for job in slurm.queued()} - {last}
    # its first task has begun, and its last has not
    wait_for(lambda: any(out.rglob("teacher/fit.log")), "the first array does not run")
    slurm.signal(first, "--batch")
    (teacher,) = slurm.finish(first)
    slurm.finish(last)
    assert teacher["Restarts"] == "1"
    logs = "".join(log.read_text() for log in (out / "slurm/logs").iterdir())
    assert [(run.dataset, run.seed, run.row) for run in read_all(out)] == [
        ("dtd", 1, "student"),
        ("dtd", 1, "teacher"),
    ], logs
