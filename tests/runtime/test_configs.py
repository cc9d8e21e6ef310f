import pytest
from runs import CONFIGS, DATA, TEACHER
from world import refused

from kdpl.cli.fit import parse_stage
from kdpl.errors import ConfigError
from kdpl.runtime.configs import find_config, read_config, shipped_configs, with_config_files


def test_every_config_that_ships_is_found_by_its_path_below_configs_without_the_suffix():
    files = {file.relative_to(CONFIGS): file for file in CONFIGS.rglob("*.yaml")}
    assert shipped_configs() == {str(name.with_suffix("")): file for name, file in files.items()}


def test_a_file_comes_before_a_name_and_a_name_before_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = str(CONFIGS / "teacher/quickstart.yaml")
    assert find_config("teacher/quickstart") == find_config("quickstart", "teacher") == shipped
    (tmp_path / "quickstart").mkdir()
    assert find_config("quickstart", "teacher") == shipped
    (tmp_path / "quickstart").rmdir()
    (tmp_path / "quickstart").write_text("trainer: {}")
    assert find_config("quickstart", "teacher") == "quickstart"
    # a suffix says that a file is meant
    assert find_config("quickstart.yaml", "teacher") == "quickstart.yaml"


def test_names_after_config_become_files_and_other_arguments_stay():
    cpu = str(CONFIGS / "trainer/cpu.yaml")
    args = ["--config", "trainer/cpu", "--config=trainer/cpu", "--out", "trainer/cpu"]
    assert with_config_files(args) == [f"--config={cpu}", f"--config={cpu}", *args[3:]]
    assert with_config_files(["--config", "a.yaml"]) == ["--config=a.yaml"]
    fit = ["--config=data/digits", "--config", "trainer/cpu", "--config=teacher/quickstart"]
    assert parse_stage("fit", fit).config == parse_stage("fit", [*DATA, *TEACHER]).config


@pytest.mark.parametrize(
    ("value", "folder", "near"),
    [
        ("promptsrc", "teacher", "promptsrc_vit_l14"),
        ("trainer/gpus", None, "trainer/gpu"),
        ("../teacher/quickstart", "teacher", ""),
    ],
)
def test_a_name_that_there_is_not_is_refused_with_the_nearest_ones(value, folder, near):
    with pytest.raises(ConfigError, match=f"no config '{value}'.*{near}"):
        find_config(value, folder)


def test_the_path_of_a_config_that_ships_is_answered_with_its_name_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(ConfigError, "does not exist: check the path, or give trainer/cpu, which ships"):
        read_config("configs/trainer/cpu.yaml")
