import os

import pytest
import world
from kdpl.runtime.launch import (
    Launch,
    launch,
    matching_trainer,
    needs_srun,
    of_several,
    require_processes,
    require_srun,
)
from runs import DATA, TEACHER

from kdpl.__main__ import main
from kdpl.errors import ConfigError

TASK = {"SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "mine", "SLURM_NNODES": "2", "SLURM_NTASKS": "8"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS_PER_NODE": "4"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}


@pytest.fixture
def environment(monkeypatch):
    """Say what the environment of this process is."""

    def be(**variables):
        for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    be()
    return be


def test_srun_and_torchrun_are_told_apart_from_lightnings_own_start(environment):
    assert launch() is None
    environment(SLURM_JOB_ID="17")
    assert launch() is None, "a job that says nothing of tasks leaves the start to Lightning"
    environment(**TASK, **STEP)
    assert launch() == Launch("Slurm", 8, 2, "sbatch's --ntasks-per-node")
    environment(**TASK, **STEP, **TORCHRUN)
    assert launch() == Launch("torchrun", 4, 2, "torchrun's --nproc_per_node")
    environment(**{**TASK, **STEP, "SLURM_JOB_NAME": "interactive"})
    assert launch() is None


def test_a_jobs_script_is_none_of_its_tasks(environment):
    environment(**TASK)
    assert (needs_srun(), of_several()) == (True, False)
    environment(**TASK, **STEP)
    assert (needs_srun(), of_several()) == (False, True)
    environment(**{**TASK, "SLURM_NTASKS": "1"})
    assert (needs_srun(), of_several()) == (False, False)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (TASK, "the Slurm job has 8 tasks and this is none of them: put srun before the command"),
        ({**TASK, "SLURM_NTASKS": "1"}, "a Slurm job was allocated and this process is no task of it: put srun before"),
        ({**TASK, **STEP, "SLURM_NTASKS_PER_NODE": None}, "give --ntasks-per-node in the place of --ntasks"),
    ],
    ids=["no srun", "one task and no srun", "tasks of a node"],
)
def test_a_start_that_would_hang_is_one_sentence(variables, words, environment):
    environment(**{name: value for name, value in variables.items() if value is not None})
    with pytest.raises(ConfigError, match=words) as error:
        require_srun()
    assert world.one_sentence(error)


@pytest.mark.parametrize("variables", [{}, {**TASK, **STEP}, {**TASK, **TORCHRUN}], ids=["alone", "srun", "torchrun"])
def test_a_start_that_is_right_is_let_through(variables, environment):
    environment(**variables)
    require_srun()


def test_other_devices_than_processes_are_one_sentence_with_both_numbers(environment):
    environment(**TASK, **STEP)
    require_processes(4, 2)
    with pytest.raises(ConfigError) as error:
        require_processes(8, 2)
    assert str(error.value) == (
        "trainer.devices is 8 and trainer.num_nodes is 2, but Slurm started 8 processes on 2 nodes: set "
        "trainer.devices to 4 and trainer.num_nodes to 2, or change sbatch's --ntasks-per-node"
    )
    with pytest.raises(ValueError, match="something else"), matching_trainer(1, 1):
        raise ValueError("something else")


def test_run_is_started_once(environment, tmp_path, capsys):
    environment(**TORCHRUN)
    configs = [f"--config={DATA[1].partition('=')[2]}", DATA[0]]
    stages = ["--teacher", TEACHER[0].partition("=")[2], "--student", TEACHER[0].partition("=")[2]]
    assert main(["run", *configs, *stages, "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: run was started by several processes at once: start it once, without srun or ")
    assert not (tmp_path / "out").exists()
