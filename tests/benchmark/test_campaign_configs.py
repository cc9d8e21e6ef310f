"""The configs of many runs: every campaign, each kind of fit of which goes through the real parser, and the sweep."""

import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml
from campaigns import ROOT
from runs import curves_of

from kdpl.benchmark.campaign import read_campaign
from kdpl.benchmark.protocols import plan
from kdpl.benchmark.steps import one_of_each_kind
from kdpl.cli.fit import parse_stage
from kdpl.data.readers.benchmark import BENCHMARKS
from kdpl.runtime.configs import config_files

FILES = sorted(
    [*(ROOT / "configs/benchmark").glob("*.yaml"), ROOT / "benchmarks/worlds/targets.yaml"]
)
LETTERS = "benchmarks.worlds.letters.Letters"

# fits and tests of the campaigns, over 3 seeds and 2 rows
SIZES = {
    "base_to_novel": (3 * 11 * 2, 3 * 11 * 2),
    "reproduce": (3 * 2 * 2, 3 * 2 * 2),
    "atprompt": (3 * 11 * 2, 3 * 11 * 2),
    "beyond": (3 * 11 * 2, 3 * 11 * 2),
    "mmrl": (3 * 11 * 2, 3 * 11 * 2),
    "ablations": (3 * 11 * 23, 3 * 11 * 23),
    "few_shot": (3 * 11 * 5 * 2, 3 * 11 * 5 * 2),
    "cross_dataset": (3 * (1 + 10), 3 * 10 * 2),
    "domain_generalization": (3 * 2, 3 * 5 * 2),
    "quickstart": (3 * 2 * 7, 3 * 2 * 7),
}


# in which fits of one kind differ; the parser takes any
FOLDERS = ("--out=", "--model.init_args.teacher=", "--model.init_args.class_vectors=")


@cache
def steps_of(name):
    (file,) = (file for file in FILES if file.stem == name)
    return plan(read_campaign(file), Path("out"), "data")


@cache
def parsed(*args):
    return parse_stage("fit", args).config


def settings_of(step):
    """The settings of a fit; fits that differ in their folders alone are parsed once."""
    is_folder = [arg.startswith(FOLDERS) for arg in step.args[1:]]
    args = zip(step.args[1:], is_folder, strict=True)
    return parsed(*(f"{arg.partition('=')[0]}=folder" if folder else arg for arg, folder in args))


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_every_campaign_has_known_datasets_and_as_many_runs_as_it_says(name):
    steps = steps_of(name)
    assert {step.run.dataset for step in steps} <= {*BENCHMARKS, "digits", "letters"}
    kinds, half = Counter(step.kind for step in steps), len(steps) // 2
    assert (kinds["fit"], kinds["test"]) == SIZES.get(name, (half, half))
    vectors = {"cross_dataset": 30, "domain_generalization": 12}
    assert kinds["class_vectors"] == vectors.get(name, 0)


# what is reproduced are commands of base_to_novel, and most ablations change one value of a setting
MANY = [
    pytest.param(n, marks=pytest.mark.slow) for n in ("ablations", "beyond", "quickstart_ablations")
]
SPARED = {"reproduce", *(name for each in MANY for name in each.values)}
PARSED = [file.stem for file in FILES if file.stem not in SPARED]


@pytest.mark.parametrize("name", [*PARSED, *MANY])
def test_settings_of_every_campaign_parse(name):
    # the last config is the row's, of a dataset or of all; what a protocol adds is the same for all rows
    steps = one_of_each_kind(steps_of(name))
    kinds = {(step.run.row, config_files(step.args)[-1]): step for step in steps}
    for step in kinds.values():
        settings = settings_of(step)
        assert settings.seed_everything == step.run.seed
        dataset = settings.data.init_args.dataset
        assert (dataset if isinstance(dataset, str) else "letters") == step.run.dataset
        assert isinstance(dataset, str) or dataset.class_path == LETTERS


def test_what_is_reproduced_has_the_settings_of_the_main_table():
    commands = {step.title: step.args for step in steps_of("base_to_novel")}
    assert {step.title: step.args for step in steps_of("reproduce")}.items() <= commands.items()


def test_an_option_for_every_fit_wins_over_the_shots_of_the_campaign():
    campaign = read_campaign(ROOT / "configs/benchmark/quickstart.yaml")
    step = plan(campaign, Path("out"), "data", ["--data.shots=0"])[0]
    assert settings_of(step).data.init_args.shots == 0


def settings_by_dataset(name, row, datasets=None):
    """The settings of each dataset's fit; fits that differ in the dataset's name alone are parsed once."""
    by_dataset, by_args = {}, {}
    for step in steps_of(name):
        if datasets and step.run.dataset not in datasets:
            continue
        if step.kind == "fit" and step.run.row == row and step.run.dataset not in by_dataset:
            more = tuple(arg for arg in step.args[2:] if not arg.startswith(FOLDERS))
            by_args[more] = by_args.get(more) or settings_of(step)
            by_dataset[step.run.dataset] = by_args[more]
    return by_dataset


def test_weights_and_epochs_that_differ_by_dataset_are_the_published_ones():
    students = settings_by_dataset("base_to_novel", "student")
    light = {"dtd", "fgvc_aircraft", "oxford_flowers"}
    for dataset, settings in students.items():
        assert settings.model.init_args.loss.weight == (200 if dataset in light else 1000)
        assert settings.trainer.max_epochs == 20
    teachers = settings_by_dataset("few_shot", "teacher")
    late = {"stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat"}
    for dataset, settings in teachers.items():
        averaging = settings.model.init_args.averaging
        expected = (45, 5) if dataset in late else (30, 30)
        assert (averaging.mean, averaging.std, settings.trainer.max_epochs) == (*expected, 50)
    assert len(students) == len(teachers) == 11


def test_differences_of_logits_have_weights_of_their_own_on_every_dataset():
    for row, weight in (("logit_l1", 10), ("logit_mse", 1)):
        by_dataset = settings_by_dataset("ablations", row, ("dtd", "eurosat"))
        losses = [settings.model.init_args.loss for settings in by_dataset.values()]
        assert [(loss.kind, loss.weight) for loss in losses] == [(row[6:], weight)] * 2


def test_attributes_are_those_of_each_dataset_on_its_teacher_alone():
    by_dataset = settings_by_dataset("atprompt", "teacher", ("oxford_flowers", "imagenet"))
    attributes = {
        dataset: settings.model.init_args.method.init_args.attributes
        for dataset, settings in by_dataset.items()
    }
    assert attributes == {
        "imagenet": ["color", "shape"],
        "oxford_flowers": ["color", "habitat", "growth"],
    }
    (student,) = settings_by_dataset("atprompt", "student", ("oxford_flowers",)).values()
    assert student.model.init_args.loss.weight == 200


@pytest.mark.parametrize(("row", "combine"), [("both", True), ("class_alone", False)])
def test_representation_tokens_have_the_weights_of_each_dataset(row, combine):
    by_dataset = settings_by_dataset("mmrl", row, ("oxford_flowers", "imagenet", "eurosat"))
    methods = {name: s.model.init_args.method.init_args for name, s in by_dataset.items()}
    weights = {name: method.weight for name, method in methods.items()}
    assert weights == {"oxford_flowers": 4, "imagenet": 0.5, "eurosat": 0.01}
    assert {method.combine for method in methods.values()} == {combine}
    flowers, imagenet = by_dataset["oxford_flowers"], by_dataset["imagenet"]
    assert (flowers.trainer.max_epochs, imagenet.trainer.max_epochs) == (10, 5)
    assert [s.data.init_args.batch_size for s in (flowers, imagenet)] == [4, 32]


@pytest.mark.parametrize("name", ["cross_dataset", "domain_generalization"])
def test_a_teacher_of_imagenet_has_prompts_in_nine_layers_and_its_students_in_three(name):
    (source,) = settings_by_dataset(name, "teacher").values()
    assert source.data.init_args.dataset == "imagenet"
    assert source.data.init_args.shots == 16
    tuned = source.model.init_args
    assert tuned.vision_prompts.depth == tuned.text_prompts.depth == 9
    assert (tuned.averaging.mean, tuned.averaging.std) == (15, 1)
    for settings in settings_by_dataset(name, "student").values():
        student = settings.model.init_args
        assert (student.vision_prompts.depth, student.loss.weight) == (3, 1000)


def test_the_readmes_table_has_the_rows_of_its_campaign():
    readme = (ROOT / "README.md").read_text()
    for row in read_campaign(ROOT / "configs/benchmark/quickstart.yaml").rows.values():
        assert f"| {row.title} " in readme


# --- the sweep, turned into a command as the agent of W&B does it ---

SWEEP = yaml.safe_load((ROOT / "configs/sweep/student.yaml").read_text())


def command_of(parameters):
    """The command of a run, with the agent's macros filled in and printed instead of run."""
    args = [f"--{name}={value}" for name, value in parameters.items()]
    macros = {"${env}": ["/usr/bin/env"], "${interpreter}": ["echo"], "${args}": args}
    return [word for part in SWEEP["command"] for word in macros.get(part, [part])]


@pytest.mark.parametrize("end", [0, -1], ids=["first values", "last values"])
def test_the_parameters_are_settings_of_fit_and_each_run_has_a_folder_of_its_own(end, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    ends = {
        name: parameter.get("values") or [parameter["min"], parameter["max"]]
        for name, parameter in SWEEP["parameters"].items()
    }
    command = command_of({name: values[end] for name, values in ends.items()})
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert said[:3] == ["-m", "kdpl", "fit"]
    fit = [word for word in said[3:] if "logger/wandb" not in word]
    settings = parse_stage("fit", [*fit, "--model.init_args.teacher=T"]).config
    assert settings.out == "runs/sweep/abc"
    model = settings.model.init_args
    assert model.loss.weight == ends["model.init_args.loss.weight"][end]
    assert model.optim.lr == ends["model.init_args.optim.lr"][end]


def test_the_metric_is_one_of_a_students_run(student_run):
    assert SWEEP["metric"] == {"name": "val/acc", "goal": "maximize"}
    assert "val/acc" in curves_of(student_run)
