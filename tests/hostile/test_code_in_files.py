"""Files that would run code if they were unpickled, and configs of more than plain values."""

import ast
from pathlib import Path

import pytest
import torch
import world

import kdpl
from kdpl.callbacks.checkpoints import require_intact
from kdpl.errors import ConfigError, KdplError
from kdpl.runtime.configs import read_config

SOURCES = sorted(Path(kdpl.__file__).parent.rglob("*.py"))


def test_nothing_in_the_sources_unpickles_or_builds_what_a_file_says():
    assert len(SOURCES) > 100
    forbidden = {
        "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.jit.load", "yaml.load", "yaml.unsafe_load",
        "yaml.full_load", "yaml.load_all", "eval", "exec", "os.system", "marshal.loads", "shelve.open", "joblib.load",
    }  # fmt: skip
    trees = ((file, ast.parse(file.read_text(encoding="utf-8"))) for file in SOURCES)
    calls = ((file, n) for file, tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call))
    loads = 0
    for file, call in calls:
        name = ast.unparse(call.func)
        flags = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
        loads += name == "torch.load"
        assert name != "torch.load" or flags.get("weights_only") is True, file
        assert name not in forbidden, file
        for option in ("allow_pickle", "shell"):
            given = option in (keyword.arg for keyword in call.keywords)
            assert not given or flags.get(option) is False, file
    assert loads


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_would_write_a_file_is_refused_and_writes_none(zipped, tmp_path):
    written, file = tmp_path / "written", tmp_path / "last.ckpt"
    content = {"state_dict": {}, "epoch": 0, "pytorch-lightning_version": "2"}
    content["x"] = world.Call(Path.touch, written)
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with world.refused(KdplError, r"last\.ckpt is damaged"):
        require_intact(file)
    assert not written.exists()
    torch.load(file, weights_only=False)
    assert written.exists()  # as it would have, unpickled


@pytest.mark.parametrize("text", ["model: !!python/object/apply:os.system ['true']", "a: \x00"])
def test_a_config_that_is_more_than_plain_values_is_refused(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with world.refused(ConfigError, "is not YAML"):
        read_config(str(tmp_path / "config.yaml"))
