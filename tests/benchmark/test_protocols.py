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
SOURCE, DTD, OTHER = (
    "source/imagenet/seed_3",
    "cross_dataset/dtd/seed_3",
    "domain_generalization/imagenet_a/seed_3",
)


def planned(text, place=(OUT, "data"), rows=ROWS, only=(), **changes):
    """The steps by name."""
    steps = plan(
        campaigns.campaign(text, rows=rows, **{"configs": [], **changes}), *place, rows=only
    )
    return {step.title: step for step in steps}


def graph(steps):
    return {name: set(step.needs) for name, step in steps.items()}


def test_base_to_novel_has_both_stages_for_each_seed():
    steps = planned(BASE_TO_NOVEL)
    assert list(steps) == [
        f"base_to_novel/dtd/seed_{seed}/{step}" for seed in (1, 2) for step in CHAIN
    ]
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
    steps = planned(
        BASE_TO_NOVEL, place, rows, configs=["configs/trainer/cpu.yaml"], per_dataset=exceptions
    )
    shared = [
        f"--config=configs/{each}.yaml"
        for each in ("data/dtd", "data/base_to_novel", "trainer/cpu")
    ]
    run, root, epochs = (
        "base_to_novel/dtd/seed_2",
        "--data.init_args.root=data",
        ("--trainer.max_epochs", "2"),
    )
    teacher, student, test = (
        steps[f"{run}/{name}"] for name in ("teacher/fit", "student/fit", "student/test")
    )
    own = [
        "--config=configs/teacher/quickstart.yaml",
        root,
        "--model.init_args.optim.lr=1",
        *epochs,
    ]
    assert teacher.args == ("fit", *shared, *own, "--seed_everything=2", f"--out=out/{run}/teacher")
    own = [
        f"--config={file}" for file in ("configs/student/quickstart.yaml", exceptions[0]["student"])
    ]
    own += [root, *epochs, f"--model.init_args.teacher=out/{run}/teacher"]
    assert student.args == ("fit", *shared, *own, "--seed_everything=2", f"--out=out/{run}/student")
    assert test.args == (
        "test",
        f"--config=out/{run}/student/config.yaml",
        f"--out=out/{run}/student",
    )
    results = ("teacher/class_vectors.safetensors", "student/classifier", "student/results.json")
    assert [step.result for step in (teacher, student, test)] == [
        Path("out", run, name) for name in results
    ]


def test_few_shot_has_a_run_for_each_number_of_shots():
    steps = planned("{protocols: [few_shot], datasets: [dtd], seeds: [1], shots: [1, 16]}")
    assert list(steps) == [
        f"few_shot/dtd/shots_{shots}/seed_1/{step}" for shots in (1, 16) for step in CHAIN
    ]
    for name, step in steps.items():
        assert ("--data.init_args.shots=1" in step.args) == (
            step.kind == "fit" and "shots_1/" in name
        )
        assert not any("base_to_novel" in arg for arg in step.args)


def test_rows_are_run_under_their_own_protocols_and_shots_and_may_have_several_teachers():
    rows = {
        "zero_shot": {**ROWS["teacher"], "protocols": "few_shot", "shots": 0},
        "teacher": {**ROWS["teacher"], "shots": 16},
        "second": {**ROWS["teacher"], "shots": 16, "protocols": "few_shot"},
        "both": {
            **ROWS["student"],
            "of": ["teacher", "second"],
            "shots": 16,
            "protocols": "few_shot",
        },
    }
    text = "{protocols: [few_shot, base_to_novel], datasets: [dtd], seeds: [1], shots: [0, 16]}"
    steps = planned(text, rows=rows)
    fits = [name.removesuffix("/fit") for name in steps if name.endswith("/fit")]
    sixteen = "few_shot/dtd/shots_16/seed_1"
    assert fits == [
        "few_shot/dtd/shots_0/seed_1/zero_shot",
        *(f"{sixteen}/{row}" for row in ("teacher", "second", "both")),
        "base_to_novel/dtd/seed_1/teacher",
    ]
    both = steps[f"{sixteen}/both/fit"]
    assert both.needs == (f"{sixteen}/teacher/fit", f"{sixteen}/second/fit")
    assert (
        f'--model.init_args.teacher=["out/{sixteen}/teacher", "out/{sixteen}/second"]' in both.args
    )


@pytest.mark.parametrize(
    ("text", "protocol"), [(CROSS, "cross_dataset"), (SHIFT, "domain_generalization")]
)
def test_rows_of_other_protocols_are_left_out_where_the_source_is_tuned_on(text, protocol):
    others = {"second": ROWS["teacher"], "both": {**ROWS["student"], "of": ["teacher", "second"]}}
    few = {name: {**row, "protocols": "few_shot"} for name, row in others.items()}
    places = {"protocols": ["few_shot", protocol], "shots": [1], "datasets": ["dtd"]}
    steps = planned(text, rows={**ROWS, **few}, **places)
    assert {step.run.row for name, step in steps.items() if name.startswith("few_shot/")} == {
        *ROWS,
        *few,
    }
    assert {step.run.row for name, step in steps.items() if not name.startswith("few_shot/")} == {
        *ROWS
    }


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
    assert fit[-4:-2] == tuple(f"--model.init_args.{each}" for each in settings)


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
    assert args[1:3] == (
        f"--config=out/{SOURCE}/student/config.yaml",
        "--config=configs/data/imagenet_a.yaml",
    )
    assert (
        args[4] == f"--model.init_args.class_vectors=out/{OTHER}/teacher/class_vectors.safetensors"
    )


def test_elsewhere_the_checkpoint_is_tested_if_there_is_one(tmp_path):
    step = planned(CROSS, (tmp_path, "data"))[f"{DTD}/teacher/test"]
    assert step.command() == list(step.args)
    checkpoint = tmp_path / SOURCE / "teacher/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert step.command() == [*step.args, f"--ckpt_path={checkpoint}"]


def test_chosen_rows_bring_the_fits_that_they_need_and_no_more():
    steps = planned(BASE_TO_NOVEL, only=["student"], seeds=[1])
    assert list(steps) == [
        f"base_to_novel/dtd/seed_1/{step}" for step in CHAIN if step != "teacher/test"
    ]


def test_a_row_that_tunes_nothing_keeps_its_0_epochs():
    zero_shot = {"teacher": ["configs/teacher/quickstart.yaml", "configs/teacher/zero_shot.yaml"]}
    place = (OUT, None, ("--trainer.max_epochs", "2"))
    steps = planned(BASE_TO_NOVEL, place, {"tuned": ROWS["teacher"], "untuned": zero_shot})
    assert steps["base_to_novel/dtd/seed_1/tuned/fit"].args[4:-2] == place[2]
    assert steps["base_to_novel/dtd/seed_1/untuned/fit"].args[5:-2] == (
        *place[2],
        "--trainer.max_epochs=0",
    )


def test_a_dataset_of_ones_own_is_a_config_and_gets_no_root():
    step = planned(BASE_TO_NOVEL, datasets=["configs/data/digits.yaml"])[
        "base_to_novel/digits/seed_1/teacher/fit"
    ]
    assert step.args[1] == "--config=configs/data/digits.yaml"
    assert not any("root" in arg for arg in step.args)
