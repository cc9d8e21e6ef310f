import json

import pytest
import yaml
from runs import CONFIGS, SHORT, error_line

from kdpl.__main__ import main
from kdpl.errors import ConfigError
from kdpl.runtime.configs import find_config, shipped_configs, with_config_files


def test_every_config_that_ships_is_found_by_its_path_below_configs_without_the_suffix():
    files = sorted(CONFIGS.rglob("*.yaml"))
    assert [
        shipped_configs()[str(file.relative_to(CONFIGS)).removesuffix(".yaml")] for file in files
    ] == files
    assert len(shipped_configs()) == len(files)


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
    args = [
        "--config",
        "trainer/cpu",
        "--config=trainer/cpu",
        "--out",
        "trainer/cpu",
        "--config",
        "a.yaml",
    ]
    assert with_config_files(args) == [
        f"--config={cpu}",
        f"--config={cpu}",
        "--out",
        "trainer/cpu",
        "--config=a.yaml",
    ]


@pytest.mark.parametrize(
    ("value", "folder", "words"),
    [
        (
            "promptsrc",
            "teacher",
            ["there is no config 'promptsrc': ", "ships with kdpl (promptsrc_vit_l14, "],
        ),
        (
            "trainer/gpus",
            None,
            ["there is no config 'trainer/gpus': ", "ships with kdpl (trainer/gpu, "],
        ),
        ("../teacher/quickstart", "teacher", ["there is no config '../teacher/quickstart'"]),
    ],
)
def test_a_name_that_there_is_not_is_refused_with_the_nearest_ones(value, folder, words):
    with pytest.raises(ConfigError) as refused:
        find_config(value, folder)
    assert all(word in str(refused.value) for word in words)


def test_the_path_of_a_config_that_ships_is_answered_with_its_name_elsewhere(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config=configs/trainer/cpu.yaml", "--out=out"]) == 1
    error_line(
        capsys,
        "configs/trainer/cpu.yaml does not exist: check the path, or give trainer/cpu, which ships",
    )


def test_both_stages_and_a_fit_take_names_in_any_folder_and_a_run_is_the_same_as_with_paths(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    short = [*SHORT, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    named = [
        "--config",
        "data/digits",
        "--config=trainer/cpu",
        "--teacher",
        "quickstart",
        "--student=quickstart",
    ]
    assert main(["run", *named, "--out=run", *short]) == 0
    paths = [f"--config={CONFIGS}/data/digits.yaml", f"--config={CONFIGS}/trainer/cpu.yaml"]
    paths += [f"--{stage}={CONFIGS}/{stage}/quickstart.yaml" for stage in ("teacher", "student")]
    assert main(["run", *paths, "--out=run", *short]) == 0
    assert "run is finished: nothing to do" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/run.json").read_text())["configs"]["teacher2"] == []
    fit = ["fit", "--config=data/digits", "--config", "trainer/cpu", "--config=teacher/quickstart"]
    assert main([*fit, "--out=teacher", *short]) == 0
    fitted, of_run = (
        yaml.safe_load((tmp_path / f"{at}/config.yaml").read_text())
        for at in ("teacher", "run/teacher")
    )
    assert fitted["model"] == of_run["model"]
