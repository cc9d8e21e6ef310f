"""Every campaign in configs/benchmark: its tasks are counted, and each kind of fit goes through the real parser."""

from pathlib import Path

import pytest
from campaigns import ROOT

from kdpl.benchmark.campaign import read_campaign
from kdpl.benchmark.protocols import plan
from kdpl.benchmark.tasks import one_of_each_kind
from kdpl.cli.fit import KdplCLI, run_command
from kdpl.data.readers.benchmark import BENCHMARKS

FILES = sorted((ROOT / "configs/benchmark").glob("*.yaml"))

# fits and tests, over 3 seeds and 2 rows
SIZES = {
    "base_to_novel": (3 * 11 * 2, 3 * 11 * 2),
    "few_shot": (3 * 11 * 5 * 2, 3 * 11 * 5 * 2),
    "cross_dataset": (3 * (1 + 10), 3 * 10 * 2),
    "domain_generalization": (3 * 2, 3 * 5 * 2),
    "quickstart": (3 * 2 * 7, 3 * 2 * 7),
}


def tasks_of(name):
    return plan(read_campaign(ROOT / f"configs/benchmark/{name}.yaml"), Path("out"), "data")


def settings_of(task):
    kept = []

    def make(*args):
        kept.append(KdplCLI(*args))
        return kept[0]

    run_command(task.args, check_only=True, make=make)
    return kept[0].config


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_every_campaign_has_known_datasets_and_settings_that_parse(name):
    tasks = tasks_of(name)
    assert {task.run.dataset for task in tasks} <= {*BENCHMARKS, "digits"}
    kinds = [task.kind for task in tasks]
    assert (kinds.count("fit"), kinds.count("test")) == SIZES.get(name, (len(tasks) // 2, len(tasks) // 2))
    assert kinds.count("class_vectors") == {"cross_dataset": 30, "domain_generalization": 12}.get(name, 0)
    for task in one_of_each_kind(tasks):
        settings = settings_of(task)
        assert settings.seed_everything == task.run.seed
        assert settings.data.init_args.dataset == task.run.dataset


def settings_by_dataset(name, row, datasets=None):
    fits = [task for task in tasks_of(name) if task.kind == "fit" and (task.run.row, task.run.seed) == (row, 1)]
    found = {task.run.dataset: task for task in fits}
    return {dataset: settings_of(found[dataset]) for dataset in datasets or found}


def test_settings_that_differ_by_dataset_are_the_published_ones():
    some = ["dtd", "fgvc_aircraft", "oxford_flowers", "eurosat", "imagenet"]
    students = settings_by_dataset("base_to_novel", "student", some)
    weights = {dataset: settings.model.init_args.kd_weight for dataset, settings in students.items()}
    assert weights == {"dtd": 200, "fgvc_aircraft": 200, "oxford_flowers": 200, "eurosat": 1000, "imagenet": 1000}
    assert {settings.trainer.max_epochs for settings in students.values()} == {20}
    teachers = settings_by_dataset("few_shot", "teacher")
    averaging = {d: (s.model.init_args.averaging.mean, s.model.init_args.averaging.std) for d, s in teachers.items()}
    late = {"stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat"}
    assert averaging == {dataset: (45, 5) if dataset in late else (30, 30) for dataset in teachers}
    assert len(averaging) == 11
    assert {settings.trainer.max_epochs for settings in teachers.values()} == {50}
    (source,) = settings_by_dataset("cross_dataset", "teacher").values()
    assert source.data.init_args.dataset == "imagenet"
    assert source.data.init_args.shots == 16
    assert source.model.init_args.vision_prompts.depth == source.model.init_args.text_prompts.depth == 3


def test_the_readmes_table_has_the_rows_of_its_campaign():
    readme = (ROOT / "README.md").read_text()
    for row in read_campaign(ROOT / "configs/benchmark/quickstart.yaml").rows.values():
        assert f"| {row.title} " in readme
