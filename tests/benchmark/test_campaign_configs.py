"""Every campaign in configs/benchmark: its tasks are counted, and each kind of fit goes through the real parser."""

from pathlib import Path

import pytest

from kdpl.benchmark.campaign import read_campaign
from kdpl.benchmark.check import one_of_each_kind
from kdpl.benchmark.protocols import Place, plan
from kdpl.cli.fit import KdplCLI, run_command
from kdpl.data.readers.benchmark import BENCHMARKS

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs/benchmark").glob("*.yaml"))

# fits and tests, over 3 seeds and 2 rows
SIZES = {
    "base_to_novel": (3 * 11 * 2, 3 * 11 * 2),
    "few_shot": (3 * 11 * 5 * 2, 3 * 11 * 5 * 2),
    "cross_dataset": (3 * (1 + 10), 3 * 10 * 2),
    "domain_generalization": (3 * 2, 3 * 5 * 2),
    "quickstart": (3 * 2 * 7, 3 * 2 * 7),
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def tasks_of(file, *options):
    return plan(read_campaign(file), Place(Path("out"), "data", options))


def settings_of(task):
    kept = []
    run_command(task.args, check_only=True, make=lambda args, only: kept.append(KdplCLI(args, only).config["fit"]))
    return kept[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_kind_of_fit_is_one_that_the_parser_takes(file):
    kinds = one_of_each_kind(tasks_of(file))
    assert kinds
    for task in kinds:
        settings = settings_of(task)
        assert settings.seed_everything == task.run.seed
        assert settings.data.init_args.dataset == (task.run.dataset)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_campaign_asks_for_datasets_that_there_are(file):
    campaign = read_campaign(file)
    names = {*campaign.datasets, *campaign.variants, *([campaign.source] if campaign.source else [])}
    assert names <= {*BENCHMARKS, "digits"}


@pytest.mark.parametrize("name", SIZES)
def test_the_campaigns_of_the_paper_have_its_datasets_and_seeds(name):
    tasks = tasks_of(ROOT / f"configs/benchmark/{name}.yaml")
    fits, tests = (sum(task.kind == kind for task in tasks) for kind in ("fit", "test"))
    assert (fits, tests) == SIZES[name]
    assert len(tasks) - fits - tests == {"cross_dataset": 30, "domain_generalization": 12}.get(name, 0)


def settings_by_dataset(name, row, **more):
    tasks = tasks_of(ROOT / f"configs/benchmark/{name}.yaml")
    found = {}
    for task in tasks:
        if task.kind == "fit" and task.run.row == row and task.run.seed == 1:
            found.setdefault(task.run.dataset, task)
    wanted = more.get("datasets", found)
    return {dataset: settings_of(found[dataset]) for dataset in wanted}


def test_settings_that_differ_by_dataset_are_the_published_ones():
    some = ["dtd", "fgvc_aircraft", "oxford_flowers", "eurosat", "imagenet"]
    students = settings_by_dataset("base_to_novel", "student", datasets=some)
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


def test_the_readmes_table_has_the_rows_that_it_always_had():
    campaign = read_campaign(ROOT / "configs/benchmark/quickstart.yaml")
    assert {row.title: (row.configs, row.options, row.of) for row in campaign.rows.values()} == {
        "teacher's CLIP, zero-shot": (
            ("configs/teacher/quickstart.yaml", "configs/teacher/zero_shot.yaml"),
            (),
            None,
        ),
        "student's CLIP, zero-shot": (
            ("configs/teacher/quickstart.yaml", "configs/teacher/zero_shot.yaml"),
            ("--model.init_args.clip.model=tiny-student",),
            None,
        ),
        "teacher, tuned": (("configs/teacher/quickstart.yaml",), (), None),
        "**student, distilled**": (("configs/student/quickstart.yaml",), (), "teacher"),
        "ablation: published start of the prompts": (
            ("configs/student/quickstart.yaml",),
            ("--model.init_args.prompt_init=normal",),
            "teacher",
        ),
        "control: distilled from the untuned teacher": (
            ("configs/student/quickstart.yaml",),
            (),
            "teacher_zero_shot",
        ),
        "control: the student's own few-shot tuning": (
            ("configs/teacher/quickstart.yaml",),
            ("--model.init_args.clip.model=tiny-student", "--model.init_args.vision_prompts.depth=2"),
            None,
        ),
    }
