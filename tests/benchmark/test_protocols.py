from pathlib import Path

import campaigns
import pytest
from campaigns import ROOT

from kdpl.benchmark.protocols import Place, plan

ROWS = {
    "teacher": {"teacher": "configs/teacher/quickstart.yaml"},
    "student": {"student": "configs/student/quickstart.yaml", "of": "teacher"},
}
OUT = Path("out")


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def campaign(text="", rows=ROWS, **changes):
    return campaigns.campaign(text, rows=rows, **{"configs": [], **changes})


def graph(tasks):
    return {task.name: set(task.needs) for task in tasks}


def by_name(tasks):
    return {task.name: task for task in tasks}


BASE_TO_NOVEL = "{protocols: [base_to_novel], datasets: [dtd], seeds: [1, 2]}"
CROSS = "{protocols: [cross_dataset], source: imagenet, datasets: [dtd], seeds: [3]}"
SHIFT = "{protocols: [domain_generalization], source: imagenet, variants: [imagenet_a], seeds: [3]}"


def test_base_to_novel_has_both_stages_for_each_seed():
    assert list(graph(plan(campaign(BASE_TO_NOVEL), Place(OUT)))) == [
        f"base_to_novel/dtd/seed_{seed}/{row}/{kind}"
        for seed in (1, 2)
        for row in ("teacher", "student")
        for kind in ("fit", "test")
    ]
    assert graph(plan(campaign(BASE_TO_NOVEL, seeds=[1]), Place(OUT))) == {
        "base_to_novel/dtd/seed_1/teacher/fit": set(),
        "base_to_novel/dtd/seed_1/teacher/test": {"base_to_novel/dtd/seed_1/teacher/fit"},
        "base_to_novel/dtd/seed_1/student/fit": {"base_to_novel/dtd/seed_1/teacher/fit"},
        "base_to_novel/dtd/seed_1/student/test": {"base_to_novel/dtd/seed_1/student/fit"},
    }


def test_a_fit_is_the_command_that_a_person_would_type():
    both = {
        "teacher": {**ROWS["teacher"], "options": ["--model.init_args.optim.lr=1"]},
        "student": ROWS["student"],
    }
    exceptions = [
        {"datasets": ["dtd"], "student": "configs/student/kd_weight_200.yaml"},
        {"datasets": ["oxford_pets"], "student": "configs/student/cross_dataset.yaml"},
    ]
    whole = campaign(BASE_TO_NOVEL, both, configs=["configs/trainer/cpu.yaml"], per_dataset=exceptions)
    tasks = by_name(plan(whole, Place(OUT, "data", ("--trainer.max_epochs", "2"))))
    shared = ["configs/data/dtd.yaml", "configs/data/base_to_novel.yaml", "configs/trainer/cpu.yaml"]
    teacher = tasks["base_to_novel/dtd/seed_2/teacher/fit"]
    assert teacher.args == (
        "fit",
        *(f"--config={file}" for file in (*shared, "configs/teacher/quickstart.yaml")),
        "--data.init_args.root=data",
        "--model.init_args.optim.lr=1",
        *("--trainer.max_epochs", "2"),
        "--seed_everything=2",
        "--out=out/base_to_novel/dtd/seed_2/teacher",
    )
    assert teacher.result == OUT / "base_to_novel/dtd/seed_2/teacher/class_vectors.safetensors"
    student = tasks["base_to_novel/dtd/seed_2/student/fit"]
    own = ["configs/student/quickstart.yaml", "configs/student/kd_weight_200.yaml"]
    assert student.args == (
        "fit",
        *(f"--config={file}" for file in (*shared, *own)),
        "--data.init_args.root=data",
        *("--trainer.max_epochs", "2"),
        "--model.init_args.teacher=out/base_to_novel/dtd/seed_2/teacher",
        "--seed_everything=2",
        "--out=out/base_to_novel/dtd/seed_2/student",
    )
    assert student.result == OUT / "base_to_novel/dtd/seed_2/student/classifier"
    test = tasks["base_to_novel/dtd/seed_2/student/test"]
    folder = "out/base_to_novel/dtd/seed_2/student"
    assert test.args == ("test", f"--config={folder}/config.yaml", f"--out={folder}")
    assert test.result == Path(folder) / "results.json"


def test_few_shot_has_a_run_for_each_number_of_shots():
    tasks = plan(campaign("{protocols: [few_shot], datasets: [dtd], seeds: [1], shots: [1, 16]}"), Place(OUT))
    assert [task.name for task in tasks] == [
        f"few_shot/dtd/shots_{shots}/seed_1/{row}/{kind}"
        for shots in (1, 16)
        for row in ("teacher", "student")
        for kind in ("fit", "test")
    ]
    for task in tasks:
        assert ("--data.init_args.shots=1" in task.args) == (task.kind == "fit" and "shots_1/" in task.name)
        assert not any("base_to_novel" in arg for arg in task.args)


def test_cross_dataset_tunes_on_the_source_and_distils_on_each_target():
    tasks = plan(campaign(CROSS), Place(OUT, "data"))
    assert graph(tasks) == {
        "source/imagenet/seed_3/teacher/fit": set(),
        "cross_dataset/dtd/seed_3/teacher/class_vectors": {"source/imagenet/seed_3/teacher/fit"},
        "cross_dataset/dtd/seed_3/teacher/test": {"source/imagenet/seed_3/teacher/fit"},
        "cross_dataset/dtd/seed_3/student/fit": {
            "source/imagenet/seed_3/teacher/fit",
            "cross_dataset/dtd/seed_3/teacher/class_vectors",
        },
        "cross_dataset/dtd/seed_3/student/test": {"cross_dataset/dtd/seed_3/student/fit"},
    }
    args = {name: task.args for name, task in by_name(tasks).items()}
    vectors = "out/cross_dataset/dtd/seed_3/teacher/class_vectors.safetensors"
    assert args["cross_dataset/dtd/seed_3/teacher/class_vectors"] == (
        "class-vectors",
        "--teacher=out/source/imagenet/seed_3/teacher",
        "--config=configs/data/dtd.yaml",
        "--data.init_args.root=data",
        f"--out={vectors}",
    )
    assert args["cross_dataset/dtd/seed_3/teacher/test"] == (
        "test",
        "--config=out/source/imagenet/seed_3/teacher/config.yaml",
        "--config=configs/data/dtd.yaml",
        "--data.init_args.root=data",
        "--out=out/cross_dataset/dtd/seed_3/teacher",
    )
    assert args["cross_dataset/dtd/seed_3/student/fit"][-4:] == (
        "--model.init_args.teacher=out/source/imagenet/seed_3/teacher",
        f"--model.init_args.class_vectors={vectors}",
        "--seed_everything=3",
        "--out=out/cross_dataset/dtd/seed_3/student",
    )
    assert args["cross_dataset/dtd/seed_3/student/fit"][1] == "--config=configs/data/dtd.yaml"


def test_domain_generalization_tests_both_on_the_source_and_elsewhere():
    tasks = plan(campaign(SHIFT), Place(OUT, "data"))
    assert graph(tasks) == {
        "source/imagenet/seed_3/teacher/fit": set(),
        "source/imagenet/seed_3/teacher/test": {"source/imagenet/seed_3/teacher/fit"},
        "source/imagenet/seed_3/student/fit": {"source/imagenet/seed_3/teacher/fit"},
        "source/imagenet/seed_3/student/test": {"source/imagenet/seed_3/student/fit"},
        "domain_generalization/imagenet_a/seed_3/teacher/class_vectors": {"source/imagenet/seed_3/teacher/fit"},
        "domain_generalization/imagenet_a/seed_3/teacher/test": {"source/imagenet/seed_3/teacher/fit"},
        "domain_generalization/imagenet_a/seed_3/student/test": {
            "source/imagenet/seed_3/student/fit",
            "domain_generalization/imagenet_a/seed_3/teacher/class_vectors",
        },
    }
    assert by_name(tasks)["domain_generalization/imagenet_a/seed_3/student/test"].args == (
        "test",
        "--config=out/source/imagenet/seed_3/student/config.yaml",
        "--config=configs/data/imagenet_a.yaml",
        "--data.init_args.root=data",
        "--model.init_args.class_vectors=out/domain_generalization/imagenet_a/seed_3/teacher/class_vectors.safetensors",
        "--out=out/domain_generalization/imagenet_a/seed_3/student",
    )


def test_the_two_experiments_of_a_source_share_what_is_fitted_on_it():
    both = campaign(CROSS, protocols=["cross_dataset", "domain_generalization"], variants=["imagenet_a"])
    names = [task.name for task in plan(both, Place(OUT))]
    apart = {task.name for text in (CROSS, SHIFT) for task in plan(campaign(text), Place(OUT))}
    assert sorted(names) == sorted(apart)
    same = [{task.name: task.args for task in plan(campaign(text), Place(OUT))} for text in (CROSS, SHIFT)]
    assert len({args["source/imagenet/seed_3/teacher/fit"] for args in same}) == 1


def test_elsewhere_the_checkpoint_is_tested_if_there_is_one(tmp_path):
    task = by_name(plan(campaign(CROSS), Place(tmp_path)))["cross_dataset/dtd/seed_3/teacher/test"]
    assert task.command() == list(task.args)
    checkpoint = tmp_path / "source/imagenet/seed_3/teacher/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert task.command() == [*task.args, f"--ckpt_path={checkpoint}"]


def test_chosen_rows_bring_the_fits_that_they_need_and_no_more():
    tasks = plan(campaign(BASE_TO_NOVEL, seeds=[1]), Place(OUT), ["student"])
    assert [task.name for task in tasks] == [
        "base_to_novel/dtd/seed_1/teacher/fit",
        "base_to_novel/dtd/seed_1/student/fit",
        "base_to_novel/dtd/seed_1/student/test",
    ]


def test_a_published_teacher_is_imported_in_place_of_a_fit():
    rows = {**ROWS, "teacher": {**ROWS["teacher"], "import": "files/{dataset}/seed{seed}.pt"}}
    tasks = by_name(plan(campaign(BASE_TO_NOVEL, rows), Place(OUT)))
    fitted = by_name(plan(campaign(BASE_TO_NOVEL), Place(OUT)))["base_to_novel/dtd/seed_2/teacher/fit"]
    task = tasks["base_to_novel/dtd/seed_2/teacher/import"]
    assert task.args == ("import", "teacher", "files/dtd/seed2.pt", *fitted.args[1:])
    assert task.result == fitted.result
    assert tasks["base_to_novel/dtd/seed_2/student/fit"].needs == (task.name,)


@pytest.mark.parametrize("option", [("--trainer.max_epochs", "2"), ("--trainer.max_epochs=2",)], ids=len)
def test_a_row_that_tunes_nothing_keeps_its_0_epochs(option):
    rows = {
        "tuned": ROWS["teacher"],
        "untuned": {"teacher": ["configs/teacher/quickstart.yaml", "configs/teacher/zero_shot.yaml"]},
    }
    place = Place(OUT, None, ("--data.init_args.shots", "4", *option, "--trainer.log_every_n_steps=1"))
    tasks = by_name(plan(campaign(BASE_TO_NOVEL, rows), place))
    shots = ("--data.init_args.shots", "4")
    assert tasks["base_to_novel/dtd/seed_1/tuned/fit"].args[4:-2] == (*shots, *option, "--trainer.log_every_n_steps=1")
    assert tasks["base_to_novel/dtd/seed_1/untuned/fit"].args[5:-2] == (*shots, "--trainer.log_every_n_steps=1")


def test_a_dataset_of_ones_own_is_a_config_and_gets_no_root():
    tasks = plan(campaign(BASE_TO_NOVEL, datasets=["configs/data/digits.yaml"]), Place(OUT, "data"))
    assert tasks[0].name == "base_to_novel/digits/seed_1/teacher/fit"
    assert tasks[0].args[1] == "--config=configs/data/digits.yaml"
    assert not any("root" in arg for arg in tasks[0].args)
