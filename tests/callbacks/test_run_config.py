from types import SimpleNamespace

import pytest
import yaml

from kdpl.callbacks.run_config import RunConfig
from kdpl.runtime.run_folder import CHECKPOINTS_FOLDER, CONFIG_FILE, LAST


def test_the_config_is_complete_with_all_defaults(teacher_run):
    config = yaml.safe_load((teacher_run / CONFIG_FILE).read_text())
    assert config["seed_everything"] == 1
    assert config["out"] == str(teacher_run)
    assert config["model"]["init_args"]["averaging"] == {"mean": 2.0, "std": 1.0}
    assert config["model"]["init_args"]["optim"]["momentum"] == 0.9
    assert config["data"]["init_args"]["shots"] == 16
    assert config["trainer"]["logger"] is not None
    assert config["ckpt_path"] is None


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_failure_removes_the_config_if_nothing_can_be_resumed(tmp_path, checkpoint):
    (tmp_path / CONFIG_FILE).write_text("seed_everything: 1")
    if checkpoint:
        (tmp_path / CHECKPOINTS_FOLDER).mkdir()
        (tmp_path / LAST).touch()
    callback = RunConfig(parser=None, config=None)
    callback.already_saved = True
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), is_global_zero=True)
    callback.on_exception(trainer, None, RuntimeError())
    assert (tmp_path / CONFIG_FILE).exists() == checkpoint
