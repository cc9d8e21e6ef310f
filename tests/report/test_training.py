import yaml

from kdpl.report.training import differing_settings


def by_name(config):
    return {s.name: (s.value, s.default) for s in differing_settings(config)}


def test_settings_of_a_real_fit_are_listed_with_value_and_default(teacher_run, student_run):
    found = by_name(yaml.safe_load((student_run / "config.yaml").read_text()))
    assert found["model.init_args.vision_prompts.depth"] == ("2", "9")
    assert found["model.init_args.prompt_init"] == ("mean_token", "normal")
    assert found["model.init_args.optim.lr"] == ("0.003", str(0.005))
    assert found["data.init_args.dataset"] == ("digits", None)
    assert found["trainer.max_epochs"] == ("2", "none")
    for default in ("model.init_args.kd_weight", "data.init_args.shots", "trainer.num_nodes", "data.init_args.root"):
        assert default not in found
    assert not [name for name in found if name.startswith("trainer.logger")]
    # a group whose default is None is listed part by part
    teacher = by_name(yaml.safe_load((teacher_run / "config.yaml").read_text()))
    assert {name: value for name, (value, _) in teacher.items() if "averaging" in name} == {
        "model.init_args.averaging.mean": "2.0",
        "model.init_args.averaging.std": "1.0",
    }
