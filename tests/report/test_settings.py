import yaml

from kdpl.report.settings import differing_settings


def by_name(config):
    return {s.name: (s.value, s.default) for s in differing_settings(config)}


def test_settings_of_a_real_fit_are_named_with_value_and_default(student_run):
    config = yaml.safe_load((student_run / "config.yaml").read_text())
    found = by_name(config)
    assert found["model.init_args.vision_prompts.depth"] == ("2", "9")
    assert found["model.init_args.prompt_init"] == ("mean_token", "normal")
    assert found["model.init_args.optim.lr"] == ("0.003", str(0.005))
    assert found["data.init_args.augmentation"] == ("light_affine", "random_resized_crop")
    assert found["data.init_args.dataset"] == ("digits", None)
    assert found["trainer.max_epochs"] == ("2", "none")
    for default in ("model.init_args.kd_weight", "data.init_args.shots", "trainer.num_nodes", "data.init_args.root"):
        assert default not in found
    assert not [name for name in found if name.startswith("trainer.logger")]


def test_a_group_whose_default_is_none_is_shown_part_by_part(teacher_run):
    found = by_name(yaml.safe_load((teacher_run / "config.yaml").read_text()))
    assert {name: found[name][0] for name in found if "averaging" in name} == {
        "model.init_args.averaging.mean": "2.0",
        "model.init_args.averaging.std": "1.0",
    }


def test_of_a_class_that_is_gone_all_settings_are_shown():
    config = {
        "model": {"class_path": "gone.Model", "init_args": {"width": 3}},
        "data": {"class_path": "kdpl.DomainDataModule", "init_args": {"shots": 16}},
    }
    assert by_name(config) == {"model.init_args.width": ("3", None)}
