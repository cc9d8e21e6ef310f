from pathlib import Path

import campaigns
import pytest

from kdpl.benchmark.protocols import plan

ROWS = {
    "teacher": {"teacher": "configs/teacher/quickstart.yaml"},
    "student": {"student": "configs/student/quickstart.yaml", "of": "teacher"},
}
OUT = Path("out")
BASE_TO_NOVEL = "{protocols: [base_to_novel], datasets: [dtd], seeds: [1, 2]}"
CROSS = "{protocols: [cross_dataset], source: imagenet, datasets: [dtd], seeds: [3]}"
SHIFT = "{protocols: [domain_generalization], source: imagenet, variants: [imagenet_a], seeds: [3]}"
CHAIN = ["teacher/fit", "teacher/test", "student/fit", "student/test"]
SOURCE, DTD = "source/imagenet/seed_3", "cross_dataset/dtd/seed_3"
OTHER = "domain_generalization/imagenet_a/seed_3"


def planned(text, place=(OUT, "data"), rows=ROWS, only=(), **changes):
    """The steps by name."""
    campaign = campaigns.campaign(text, rows=rows, **{"configs": [], **changes})
    return {step.title: step for step in plan(campaign, *place, rows=only)}


def graph(steps):
    return {name: set(step.needs) for name, step in steps.items()}


def test_base_to_novel_has_both_stages_for_each_seed():
    steps = planned(BASE_TO_NOVEL)
    runs = [f"base_to_novel/dtd/seed_{seed}" for seed in (1, 2)]
    assert list(steps) == [f"{run}/{step}" for run in runs for step in CHAIN]
    run = "base_to_novel/dtd/seed_2"
    needs = [(), (f"{run}/teacher/fit",), (f"{run}/teacher/fit",), (f"{run}/student/fit",)]
    assert [steps[f"{run}/{step}"].needs for step in CHAIN] == needs


def test_a_fit_is_the_command_that_a_person_would_type():
    exceptions = [
        {"datasets": ["dtd"], "student": "configs/student/kd_weight_200.yaml"},
        {"datasets": ["oxford_pets"], "student": "configs/student/cross_dataset.yaml"},
    ]
    rows = {**ROWS, "teacher": {**ROWS["teacher"], "options": ["--model.init_args.optim.lr=1"]}}
    place = (OUT, "data", ("--trainer.max_epochs", "2"))
    changes = {"configs": ["configs/trainer/cpu.yaml"], "per_dataset": exceptions}
    steps = planned(BASE_TO_NOVEL, place, rows, **changes)

    def configs(*names):
        names = ("data/dtd", "data/base_to_novel", "trainer/cpu", *names)
        return [f"--config=configs/{name}.yaml" for name in names]

    run, root = "base_to_novel/dtd/seed_2", "--data.init_args.root=data"
    options = [root, "--model.init_args.optim.lr=1", *place[2]]
    end = ["--seed_everything=2", f"--out=out/{run}/teacher"]
    teacher = steps[f"{run}/teacher/fit"]
    assert teacher.args == ("fit", *configs("teacher/quickstart"), *options, *end)
    options = [root, *place[2], f"--model.init_args.teacher=out/{run}/teacher"]
    end = ["--seed_everything=2", f"--out=out/{run}/student"]
    student = steps[f"{run}/student/fit"]
    files = configs("student/quickstart", "student/kd_weight_200")
    assert student.args == ("fit", *files, *options, *end)
    test = steps[f"{run}/student/test"]
    assert test.args == ("test", f"--config=out/{run}/student/config.yaml", end[1])
    results = ("teacher/class_vectors.safetensors", "student/classifier", "student/results.json")
    for step, name in zip((teacher, student, test), results, strict=True):
        assert step.result == Path("out", run, name)


def test_few_shot_has_a_run_for_each_number_of_shots():
    steps = planned("{protocols: [few_shot], datasets: [dtd], seeds: [1], shots: [1, 16]}")
    runs = [f"few_shot/dtd/shots_{shots}/seed_1" for shots in (1, 16)]
    assert list(steps) == [f"{run}/{step}" for run in runs for step in CHAIN]
    for name, step in steps.items():
        of_one = step.kind == "fit" and "shots_1/" in name
        assert ("--data.init_args.shots=1" in step.args) == of_one
        assert not any("base_to_novel" in arg for arg in step.args)


def test_rows_are_run_under_their_own_protocols_and_shots():
    few = {"shots": 16, "protocols": "few_shot"}
    rows = {
        "zero_shot": {**ROWS["teacher"], "protocols": "few_shot", "shots": 0},
        "teacher": {**ROWS["teacher"], "shots": 16},
        "second": {**ROWS["teacher"], **few},
        "small": {**ROWS["student"], "of": "second", **few},
    }
    text = "{protocols: [few_shot, base_to_novel], datasets: [dtd], seeds: [1], shots: [0, 16]}"
    steps = planned(text, rows=rows)
    fits = [name.removesuffix("/fit") for name in steps if name.endswith("/fit")]
    sixteen = "few_shot/dtd/shots_16/seed_1"
    assert fits == [
        "few_shot/dtd/shots_0/seed_1/zero_shot",
        *(f"{sixteen}/{row}" for row in ("teacher", "second", "small")),
        "base_to_novel/dtd/seed_1/teacher",
    ]
    small = steps[f"{sixteen}/small/fit"]
    assert small.needs == (f"{sixteen}/second/fit",)
    assert f"--model.init_args.teacher=out/{sixteen}/second" in small.args


@pytest.mark.parametrize(
    ("text", "protocol"), [(CROSS, "cross_dataset"), (SHIFT, "domain_generalization")]
)
def test_rows_of_other_protocols_are_left_out_where_the_source_is_tuned_on(text, protocol):
    more = {"second": ROWS["teacher"], "small": {**ROWS["student"], "of": "second"}}
    few = {name: {**row, "protocols": "few_shot"} for name, row in more.items()}
    places = {"protocols": ["few_shot", protocol], "shots": [1], "datasets": ["dtd"]}
    steps = planned(text, rows={**ROWS, **few}, **places)
    few_shot = {step.run.row for name, step in steps.items() if name.startswith("few_shot/")}
    of_source = {step.run.row for name, step in steps.items() if not name.startswith("few_shot/")}
    assert (few_shot, of_source) == ({*ROWS, *few}, {*ROWS})


def test_cross_dataset_tunes_on_the_source_and_distils_on_each_target():
    steps = planned(CROSS)
    assert graph(steps) == {
        f"{SOURCE}/teacher/fit": set(),
        f"{DTD}/teacher/class_vectors": {f"{SOURCE}/teacher/fit"},
        f"{DTD}/teacher/test": {f"{SOURCE}/teacher/fit"},
        f"{DTD}/student/fit": {f"{SOURCE}/teacher/fit", f"{DTD}/teacher/class_vectors"},
        f"{DTD}/student/test": {f"{DTD}/student/fit"},
    }
    vectors = f"out/{DTD}/teacher/class_vectors.safetensors"
    data = ("--config=configs/data/dtd.yaml", "--data.init_args.root=data")
    make = steps[f"{DTD}/teacher/class_vectors"].args
    assert make == ("class-vectors", f"--teacher=out/{SOURCE}/teacher", *data, f"--out={vectors}")
    fit = steps[f"{DTD}/student/fit"].args
    assert fit[1] == data[0]
    settings = (f"teacher=out/{SOURCE}/teacher", f"class_vectors={vectors}")
    assert fit[-4:-2] == tuple(f"--model.init_args.{setting}" for setting in settings)


def test_domain_generalization_tests_both_on_the_source_and_elsewhere():
    steps = planned(SHIFT)
    assert graph(steps) == {
        f"{SOURCE}/teacher/fit": set(),
        f"{SOURCE}/teacher/test": {f"{SOURCE}/teacher/fit"},
        f"{SOURCE}/student/fit": {f"{SOURCE}/teacher/fit"},
        f"{SOURCE}/student/test": {f"{SOURCE}/student/fit"},
        f"{OTHER}/teacher/class_vectors": {f"{SOURCE}/teacher/fit"},
        f"{OTHER}/teacher/test": {f"{SOURCE}/teacher/fit"},
        f"{OTHER}/student/test": {f"{SOURCE}/student/fit", f"{OTHER}/teacher/class_vectors"},
    }
    args = steps[f"{OTHER}/student/test"].args
    config = f"--config=out/{SOURCE}/student/config.yaml"
    assert args[1:3] == (config, "--config=configs/data/imagenet_a.yaml")
    vectors = f"out/{OTHER}/teacher/class_vectors.safetensors"
    assert args[4] == f"--model.init_args.class_vectors={vectors}"


def test_elsewhere_the_checkpoint_is_tested_if_there_is_one(tmp_path):
    step = planned(CROSS, (tmp_path, "data"))[f"{DTD}/teacher/test"]
    assert step.command() == list(step.args)
    checkpoint = tmp_path / SOURCE / "teacher/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert step.command() == [*step.args, f"--ckpt_path={checkpoint}"]


def test_chosen_rows_bring_the_fits_that_they_need_and_no_more():
    steps = planned(BASE_TO_NOVEL, only=["student"], seeds=[1])
    chain = [step for step in CHAIN if step != "teacher/test"]
    assert list(steps) == [f"base_to_novel/dtd/seed_1/{step}" for step in chain]


def test_a_row_that_tunes_nothing_keeps_its_0_epochs():
    zero_shot = {"teacher": ["configs/teacher/quickstart.yaml", "configs/teacher/zero_shot.yaml"]}
    place = (OUT, None, ("--trainer.max_epochs", "2"))
    steps = planned(BASE_TO_NOVEL, place, {"tuned": ROWS["teacher"], "untuned": zero_shot})
    assert steps["base_to_novel/dtd/seed_1/tuned/fit"].args[4:-2] == place[2]
    args = steps["base_to_novel/dtd/seed_1/untuned/fit"].args
    assert args[5:-2] == (*place[2], "--trainer.max_epochs=0")


def test_a_dataset_of_ones_own_is_a_config_and_gets_no_root():
    steps = planned(BASE_TO_NOVEL, datasets=["configs/data/digits.yaml"])
    step = steps["base_to_novel/digits/seed_1/teacher/fit"]
    assert step.args[1] == "--config=configs/data/digits.yaml"
    assert not any("root" in arg for arg in step.args)
