import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import world
from runs import DATA, SHORT, TEACHER, fit_teacher
from safetensors.torch import load_file

from kdpl.callbacks.same_steps import SameSteps
from kdpl.callbacks.throughput import Throughput
from kdpl.errors import ConfigError
from kdpl.runtime.run_folder import CONFIG_FILE, PROMPTS_FILE

# five steps an epoch, and a checkpoint after each
STEPS = ["--trainer.limit_train_batches=5", "--checkpoint_every=1"]


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A teacher that was interrupted in its second epoch, on one process with 16 images a step."""

    def fail(self, trainer, *args):
        if trainer.global_step == 8:
            raise RuntimeError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", fail)
        with pytest.raises(RuntimeError, match="interrupted"):
            fit_teacher(tmp_path / "interrupted", *STEPS)
    return tmp_path / "interrupted"


def test_a_fit_that_would_resume_with_other_steps_is_refused(interrupted, capsys):
    before = (interrupted / CONFIG_FILE).read_bytes()
    assert fit_teacher(interrupted, *STEPS, "--data.init_args.batch_size=8") == 1
    line = "error: the run took 16 images a step, and would take 8 now: set data.init_args.batch_size to 16"
    assert line in capsys.readouterr().err
    assert (interrupted / CONFIG_FILE).read_bytes() == before
    assert fit_teacher(interrupted, *STEPS) == 0


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        (2, r"take 32 \(16 on each of 2 processes\) now: set data\.init_args\.batch_size to 8$"),
        (3, r"take 48 \(16 on each of 3 processes\) now: set trainer\.devices to a number that divides 16$"),
    ],
)
def test_on_several_processes_the_images_of_each_are_named(processes, words):
    callback = SameSteps()
    trainer = SimpleNamespace(datamodule=SimpleNamespace(batch_size=16), world_size=processes)
    callback.setup(trainer, None, "fit")
    callback.load_state_dict({"images_per_step": 16 * processes})
    with world.refused(ConfigError, words):
        callback.load_state_dict({"images_per_step": 16})


@pytest.mark.slow
def test_a_fit_resumes_with_the_same_images_on_another_number_of_processes(interrupted, tmp_path):
    assert fit_teacher(tmp_path / "whole", *STEPS) == 0
    two = ["--trainer.devices=2", "--data.init_args.batch_size=8"]
    command = [sys.executable, "-m", "kdpl", "fit", *DATA, *TEACHER, *SHORT, *STEPS, f"--out={interrupted}", *two]
    subprocess.run(command, check=True, capture_output=True)
    whole, resumed = (load_file(run / PROMPTS_FILE) for run in (tmp_path / "whole", interrupted))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
