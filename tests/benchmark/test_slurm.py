import json
import os
import shlex
import subprocess
import sys

import pytest
from campaigns import ROOT, campaign

from kdpl.benchmark.protocols import Place, plan
from kdpl.benchmark.slurm import levels, write_slurm

LEVELS = [
    ["source/imagenet/seed_1/teacher"],
    ["cross_dataset/dtd/seed_1/teacher", "cross_dataset/oxford_pets/seed_1/teacher"],
    ["cross_dataset/dtd/seed_1/student", "cross_dataset/oxford_pets/seed_1/student"],
]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = "{protocols: [cross_dataset], source: imagenet, datasets: [dtd, oxford_pets]}"
    return plan(campaign(text), Place(tmp_path / "my out"))


def test_runs_are_in_the_level_after_those_that_they_need(tasks):
    assert levels(tasks) == LEVELS


def test_what_is_done_is_left_out(tasks):
    tasks[0].folder.mkdir(parents=True)
    tasks[0].result.touch()
    assert levels(tasks) == LEVELS[1:]


def test_the_scripts_submit_level_after_level(tasks, tmp_path, monkeypatch):
    out = tmp_path / "my out"
    submit = write_slurm(tasks, out, ["benchmark", "my campaign.yaml", f"--out={out}"], ["--time=8:00:00"])
    scripts = sorted(submit.parent.glob("*.sbatch"))
    assert [script.name for script in scripts] == ["level_0.sbatch", "level_1.sbatch", "level_2.sbatch"]
    for script in (*scripts, submit):
        subprocess.run(["bash", "-n", script], check=True)
    head = [line for line in scripts[1].read_text().splitlines() if line.startswith("#SBATCH")]
    assert head == [
        "#SBATCH --job-name=kdpl_1",
        "#SBATCH --array=0-1",
        f"#SBATCH '--output={out}/slurm/logs/%A_%a.log'",
        "#SBATCH --signal=B:USR1@120",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --time=8:00:00",
    ]
    fake = tmp_path / "bin"
    fake.mkdir()
    sbatch = 'import json, sys\nprint(json.dumps(sys.argv[1:]), file=open("{}", "a"))\nprint("17;cluster")'
    (fake / "sbatch").write_text(f"#!{sys.executable}\n" + sbatch.format(tmp_path / "submitted"))
    (fake / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    subprocess.run(["bash", submit], check=True, stdout=subprocess.DEVNULL)
    submitted = [json.loads(line) for line in (tmp_path / "submitted").read_text().splitlines()]
    assert submitted == [
        ["--parsable", str(scripts[0])],
        ["--parsable", "--dependency=afterany:17", str(scripts[1])],
        ["--parsable", "--dependency=afterany:17", str(scripts[2])],
    ]


def test_an_element_asks_for_its_own_run(tasks, tmp_path, monkeypatch):
    out = tmp_path / "my out"
    command = ["benchmark", "my campaign.yaml", f"--out={out}"]
    write_slurm(tasks, out, command, [])
    script = out / "slurm/level_2.sbatch"
    # in place of Python, something that says with what it was started
    script.write_text(script.read_text().replace(f"exec {shlex.quote(sys.executable)}", "exec printf '%s\\n'"))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    said = subprocess.run(["bash", script], check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == ["-m", "kdpl", *command, "--only", "cross_dataset/oxford_pets/seed_1/student"]


def test_elements_that_wait_keep_their_runs_when_the_files_are_written_again(tasks, tmp_path):
    out = tmp_path / "my out"
    write_slurm(tasks, out, ["benchmark"], [])
    # what sbatch keeps of it
    kept = (out / "slurm/level_1.sbatch").read_text()
    tasks[0].folder.mkdir(parents=True)
    tasks[0].result.touch()
    write_slurm(tasks, out, ["benchmark"], [])
    assert all(run in kept for run in LEVELS[1])
    assert [file.suffix for file in (out / "slurm").iterdir() if file.name.startswith("level_")] == [".sbatch"] * 2
    submit = write_slurm([], out, ["benchmark"], [])
    assert [file.name for file in submit.parent.iterdir() if file.is_file()] == ["submit.sh"]
    subprocess.run(["bash", submit], check=True, stdout=subprocess.DEVNULL)
