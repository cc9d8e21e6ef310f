import pytest
import torch
import yaml
from kdpl.callbacks.run_folder import CONFIG_FILE, RunConfig
from runs import fit_teacher

from kdpl.runtime.run_folder import LAST


def test_the_config_is_complete_and_says_what_was_not_given(teacher_run):
    config = yaml.safe_load((teacher_run / CONFIG_FILE).read_text())
    assert config["seed_everything"] == 1
    assert config["out"] == str(teacher_run)
    assert config["model"]["init_args"]["averaging"] == {"mean": 2.0, "std": 1.0}
    assert config["model"]["init_args"]["optim"]["momentum"] == 0.9
    assert config["data"]["init_args"]["shots"] == 16
    assert config["trainer"]["logger"] is not None
    assert config["ckpt_path"] is None


def test_one_checkpoint_stays_and_it_is_that_of_the_last_epoch(teacher_run):
    assert [p.name for p in (teacher_run / "checkpoints").iterdir()] == ["last.ckpt"]
    checkpoint = torch.load(teacher_run / LAST, weights_only=True)
    assert checkpoint["epoch"] == 1
    assert checkpoint["global_step"] == 6


def test_checkpoints_can_be_left_out(tmp_path):
    assert fit_teacher(tmp_path / "out", "--trainer.max_epochs=1", "--trainer.enable_checkpointing=false") == 0
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert (tmp_path / "out" / CONFIG_FILE).is_file()
    assert (tmp_path / "out" / "class_vectors.safetensors").is_file()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_failure_takes_the_config_away_where_nothing_can_go_on(tmp_path, checkpoint):
    class Trainer:
        default_root_dir = str(tmp_path)
        is_global_zero = True

    (tmp_path / CONFIG_FILE).write_text("seed_everything: 1")
    if checkpoint:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / LAST).write_bytes(b"")
    callback = RunConfig(parser=None, config=None)
    callback.already_saved = True
    callback.on_exception(Trainer(), None, RuntimeError())
    assert (tmp_path / CONFIG_FILE).exists() == checkpoint
