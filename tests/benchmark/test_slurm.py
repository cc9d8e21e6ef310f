import os
import shlex
import subprocess
import sys

import pytest
from campaigns import campaign

from kdpl.benchmark.protocols import plan
from kdpl.benchmark.slurm import write_slurm


@pytest.fixture
def out(tmp_path):
    return tmp_path / "my out"


@pytest.fixture
def tasks(out):
    text = "{protocols: [cross_dataset], source: imagenet, datasets: [dtd, oxford_pets]}"
    return plan(campaign(text), out)


def test_the_scripts_submit_level_after_level_and_an_element_asks_for_its_own_run(
    tasks, out, tmp_path, monkeypatch
):
    command = ["benchmark", "my campaign.yaml", f"--out={out}"]
    submit = write_slurm(tasks, out, command, ["--time=8:00:00"])
    scripts = sorted(submit.parent.glob("*.sbatch"))
    assert [script.name for script in scripts] == [
        "level_0.sbatch",
        "level_1.sbatch",
        "level_2.sbatch",
    ]
    head = "\n".join(
        line for line in scripts[1].read_text().splitlines() if line.startswith("#SBATCH")
    )
    assert head.replace("#SBATCH ", "").split("\n") == [
        *("--job-name=kdpl_1", "--array=0-1", f"'--output={out}/slurm/logs/%A_%a.log'"),
        *("--signal=B:USR1@120", "--requeue", "--open-mode=append", "--time=8:00:00"),
    ]
    fake = tmp_path / "sbatch"
    fake.write_text('#!/bin/sh\nprintf "%s|" "$@" >&2\necho >&2\necho "17;cluster"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    submitted = subprocess.run(["bash", submit], check=True, capture_output=True, text=True).stderr
    after = "--dependency=afterany:17|"
    assert submitted.splitlines() == [
        f"--parsable|{options}{script}|"
        for options, script in zip(("", after, after), scripts, strict=True)
    ]
    script = scripts[2]
    # in place of Python, something that says with what it was started
    script.write_text(
        script.read_text().replace(f"exec {shlex.quote(sys.executable)}", "exec printf '%s\\n'")
    )
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    said = subprocess.run(
        ["bash", script], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert said == ["-m", "kdpl", *command, "--only", "cross_dataset/oxford_pets/seed_1/student"]


def test_finished_runs_are_left_out_and_elements_that_wait_keep_theirs_when_files_are_written_again(
    tasks, out
):
    write_slurm(tasks, out, ["benchmark"], [])
    # what sbatch keeps of it
    kept = (out / "slurm/level_1.sbatch").read_text()
    tasks[0].folder.mkdir(parents=True)
    tasks[0].result.touch()
    write_slurm(tasks, out, ["benchmark"], [])
    assert all(f"cross_dataset/{name}/seed_1/teacher" in kept for name in ("dtd", "oxford_pets"))
    assert len(list((out / "slurm").glob("level_*"))) == 2
    submit = write_slurm([], out, ["benchmark"], [])
    assert [file.name for file in submit.parent.iterdir() if file.is_file()] == ["submit.sh"]
    subprocess.run(["bash", submit], check=True, stdout=subprocess.DEVNULL)
