"""The configs of many runs: every campaign, each kind of fit of which goes through the real parser, and the sweep."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from campaigns import ROOT
from runs import SHORT

from benchmarks.worlds.photographs.clips import RECIPES
from benchmarks.worlds.photographs.images import SETS as PHOTOGRAPHS
from kdpl.__main__ import main
from kdpl.benchmark.campaign import read_campaign
from kdpl.benchmark.protocols import plan
from kdpl.benchmark.readers import BENCHMARKS
from kdpl.benchmark.steps import one_of_each_kind
from kdpl.cli.fit import parse_stage

FILES = sorted(
    [*(ROOT / "configs/benchmark").glob("*.yaml"), ROOT / "benchmarks/worlds/targets.yaml"]
)
LETTERS = "benchmarks.worlds.letters.Letters"

# fits and tests of the campaigns, over 3 seeds and 2 rows
SIZES = {
    "base_to_novel": (3 * 11 * 2, 3 * 11 * 2),
    "reproduce": (3 * 2 * 2, 3 * 2 * 2),
    "atprompt": (3 * 11 * 2, 3 * 11 * 2),
    "mmrl": (3 * 11 * 2, 3 * 11 * 2),
    "few_shot": (3 * 11 * 5 * 2, 3 * 11 * 5 * 2),
    "cross_dataset": (3 * (1 + 10), 3 * 10 * 2),
    "domain_generalization": (3 * 2, 3 * 5 * 2),
    "quickstart": (3 * 2 * 7, 3 * 2 * 7),
}


def steps_of(name):
    (file,) = (file for file in FILES if file.stem == name)
    return plan(read_campaign(file), Path("out"), "data")


def settings_of(step):
    stage = parse_stage("fit", step.args[1:])
    stage.check()
    return stage.config


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_every_campaign_has_known_datasets_and_settings_that_parse(name):
    steps = steps_of(name)
    assert {step.run.dataset for step in steps} <= {*BENCHMARKS, "digits", "letters"}
    kinds = [step.kind for step in steps]
    assert (kinds.count("fit"), kinds.count("test")) == SIZES.get(
        name, (len(steps) // 2, len(steps) // 2)
    )
    assert kinds.count("class_vectors") == {"cross_dataset": 30, "domain_generalization": 12}.get(
        name, 0
    )
    for step in one_of_each_kind(steps):
        settings = settings_of(step)
        assert settings.seed_everything == step.run.seed
        dataset = settings.data.init_args.dataset
        assert (dataset if isinstance(dataset, str) else "letters") == step.run.dataset
        assert isinstance(dataset, str) or dataset.class_path == LETTERS


@pytest.mark.parametrize("option", ["--data.shots=0", "--data.init_args.shots=0"])
def test_an_option_for_every_fit_wins_over_the_shots_of_the_campaign(option):
    campaign = read_campaign(ROOT / "configs/benchmark/few_shot.yaml")
    step = plan(campaign, Path("out"), "data", [option])[0]
    assert settings_of(step).data.init_args.shots == 0


def test_the_campaign_of_photographs_reads_the_folders_that_its_command_writes():
    file = ROOT / "benchmarks/worlds/photographs/campaign.yaml"
    steps = plan(read_campaign(file), Path("out"), "data")
    assert {step.run.dataset for step in steps} == PHOTOGRAPHS.keys()
    for step in one_of_each_kind(steps):
        settings = settings_of(step)
        data, clip = settings.data.init_args, settings.model.init_args.clip
        root = f"runs/photographs/data/{step.run.dataset}"
        assert (data.dataset, data.root, clip.pretrained) == ("folder", root, None)
        assert clip.model.removeprefix("local-dir:runs/photographs/clips/") in RECIPES


def settings_by_dataset(name, row, datasets=None):
    fits = [
        step
        for step in steps_of(name)
        if step.kind == "fit" and (step.run.row, step.run.seed) == (row, 1)
    ]
    found = {step.run.dataset: step for step in fits}
    return {dataset: settings_of(found[dataset]) for dataset in datasets or found}


def test_settings_that_differ_by_dataset_are_the_published_ones():
    some = ["dtd", "fgvc_aircraft", "oxford_flowers", "eurosat", "imagenet"]
    students = settings_by_dataset("base_to_novel", "student", some)
    weights = {
        dataset: settings.model.init_args.loss.weight for dataset, settings in students.items()
    }
    assert weights == {
        "dtd": 200,
        "fgvc_aircraft": 200,
        "oxford_flowers": 200,
        "eurosat": 1000,
        "imagenet": 1000,
    }
    assert {settings.trainer.max_epochs for settings in students.values()} == {20}
    teachers = settings_by_dataset("few_shot", "teacher")
    averaging = {
        d: (s.model.init_args.averaging.mean, s.model.init_args.averaging.std)
        for d, s in teachers.items()
    }
    late = {"stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat"}
    assert averaging == {dataset: (45, 5) if dataset in late else (30, 30) for dataset in teachers}
    assert len(averaging) == 11
    assert {settings.trainer.max_epochs for settings in teachers.values()} == {50}


def test_what_is_reproduced_has_the_settings_of_the_main_table():
    everything = {step.title: step.args for step in steps_of("base_to_novel")}
    assert {step.title: step.args for step in steps_of("reproduce")}.items() <= everything.items()


def test_published_methods_have_the_settings_of_each_dataset_on_their_teachers_alone():
    some = ["oxford_flowers", "stanford_cars", "imagenet", "eurosat"]
    found = settings_by_dataset("atprompt", "teacher", some)
    methods = [found[name].model.init_args.method for name in some]
    assert [method.init_args.attributes for method in methods] == [
        ["color", "habitat", "growth"],
        ["luxury"],
        ["color", "shape"],
        ["habitat"],
    ]
    student = settings_by_dataset("atprompt", "student", ["oxford_flowers"])["oxford_flowers"]
    assert student.model.init_args.loss.weight == 200
    for row, combine in (("both", True), ("class_alone", False)):
        found = settings_by_dataset("mmrl", row, some)
        methods = [found[name].model.init_args.method.init_args for name in some]
        assert [(each.weight, each.width) for each in methods] == [
            (4, 512),
            (7, 512),
            (0.5, 512),
            (0.01, 2048),
        ]
        assert {each.combine for each in methods} == {combine}
        assert [found[name].trainer.max_epochs for name in some] == [10, 10, 5, 10]
        assert [found[name].data.init_args.batch_size for name in some] == [4, 4, 32, 4]


@pytest.mark.parametrize("name", ["cross_dataset", "domain_generalization"])
def test_a_teacher_of_imagenet_has_prompts_in_nine_layers_and_its_students_in_three(name):
    (source,) = settings_by_dataset(name, "teacher").values()
    assert source.data.init_args.dataset == "imagenet"
    assert source.data.init_args.shots == 16
    tuned = source.model.init_args
    assert tuned.vision_prompts.depth == tuned.text_prompts.depth == 9
    assert (tuned.averaging.mean, tuned.averaging.std) == (15, 1)
    students = [
        settings.model.init_args for settings in settings_by_dataset(name, "student").values()
    ]
    assert {(student.vision_prompts.depth, student.loss.weight) for student in students} == {
        (3, 1000)
    }


def test_the_readmes_table_has_the_rows_of_its_campaign():
    readme = (ROOT / "README.md").read_text()
    for row in read_campaign(ROOT / "configs/benchmark/quickstart.yaml").rows.values():
        assert f"| {row.title} " in readme


# --- the sweep, turned into a command as the agent of W&B does it ---

SWEEP = yaml.safe_load((ROOT / "configs/sweep/student.yaml").read_text())


def command_of(parameters, interpreter=sys.executable):
    """The command of a run, with the agent's macros filled in."""
    args = [f"--{name}={value}" for name, value in parameters.items()]
    macros = {"${env}": ["/usr/bin/env"], "${interpreter}": [interpreter], "${args}": args}
    return [word for part in SWEEP["command"] for word in macros.get(part, [part])]


def test_each_run_has_a_folder_of_its_own(monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    command = command_of({"model.init_args.loss.weight": 200}, "echo")
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith("-m kdpl fit ")
    assert said.endswith(" --model.init_args.loss.weight=200 --out=runs/sweep/abc\n")


@pytest.mark.parametrize("end", [0, -1], ids=["first values", "last values"])
def test_the_parameters_are_settings_of_fit(end, tmp_path, teacher_run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    ends = {
        name: each.get("values") or [each["min"], each["max"]]
        for name, each in SWEEP["parameters"].items()
    }
    command = command_of({name: values[end] for name, values in ends.items()})
    fit = [word for word in command[command.index("fit") :] if "logger/wandb" not in word]
    own = [f"--model.init_args.teacher={teacher_run}", f"--out={tmp_path / 'run'}"]
    assert main([*fit, *SHORT, "--trainer.max_epochs=1", *own]) == 0
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]["init_args"]
    assert settings["loss"]["weight"] == ends["model.init_args.loss.weight"][end]
    assert settings["optim"]["lr"] == ends["model.init_args.optim.lr"][end]
    header = (tmp_path / "run/metrics.csv").read_text().splitlines()[0]
    assert SWEEP["metric"] == {"name": "val/acc", "goal": "maximize"}
    assert "val/acc" in header.split(",")
