import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from runs import DATA, SHORT, TEACHER, fit_teacher
from safetensors.torch import load_file

from kdpl.callbacks.same_steps import SameSteps
from kdpl.callbacks.throughput import Throughput
from kdpl.errors import ConfigError

# five steps an epoch, and a checkpoint after each
STEPS = ["--trainer.limit_train_batches=5", "--checkpoint_every=1"]


def prompts(run):
    return load_file(run / "prompts.safetensors")


@pytest.fixture
def cut(tmp_path, monkeypatch):
    """A teacher that was cut in its second epoch, on one process with 16 images a step."""

    def strike(self, trainer, *args):
        if trainer.global_step == 8:
            raise RuntimeError("cut")

    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", strike)
        with pytest.raises(RuntimeError, match="cut"):
            fit_teacher(out, *STEPS)
    return out


def test_a_fit_that_would_go_on_with_other_steps_is_refused_with_what_to_set(cut, capsys):
    before = (cut / "config.yaml").read_bytes()
    assert fit_teacher(cut, *STEPS, "--data.init_args.batch_size=8") == 1
    line = "error: the run has taken 16 images a step, and would go on with 8: set data.init_args.batch_size to 16 ("
    assert line in capsys.readouterr().err
    assert (cut / "config.yaml").read_bytes() == before
    assert fit_teacher(cut, *STEPS) == 0


@pytest.mark.parametrize(
    ("processes", "words"),
    [
        (2, r"with 32 \(16 on each of 2 processes\): set data\.init_args\.batch_size to 8$"),
        (3, r"with 48 \(16 on each of 3 processes\): set trainer\.devices to a number that divides 16$"),
    ],
)
def test_on_other_processes_the_images_of_each_are_named(processes, words):
    trainer = SimpleNamespace(datamodule=SimpleNamespace(batch_size=16), world_size=processes)
    callback = SameSteps()
    callback.setup(trainer, None, "fit")
    callback.load_state_dict({"images_per_step": 16 * processes})
    with pytest.raises(ConfigError, match=words):
        callback.load_state_dict({"images_per_step": 16})


def test_a_fit_goes_on_with_the_same_images_on_another_number_of_processes(cut, tmp_path):
    assert fit_teacher(tmp_path / "whole", *STEPS) == 0
    two = ["--trainer.devices=2", "--data.init_args.batch_size=8"]
    command = [sys.executable, "-m", "kdpl", "fit", *DATA, *TEACHER, *SHORT, *STEPS, f"--out={cut}", *two]
    subprocess.run(command, check=True, capture_output=True)
    whole, resumed = prompts(tmp_path / "whole"), prompts(cut)
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
