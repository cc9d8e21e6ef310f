import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from campaigns import BASE_TO_NOVEL, campaign
from filelock import FileLock

from kdpl.benchmark import runner
from kdpl.benchmark.protocols import plan
from kdpl.benchmark.runner import last_error, run_steps
from kdpl.benchmark.steps import read_all

WHOLE = campaign(BASE_TO_NOVEL)
DTD_1 = "base_to_novel/dtd/seed_1"
STEPS = [f"{row}/{kind}" for row in ("teacher", "student") for kind in ("fit", "test")]
CHAIN_1, CHAIN_2 = ([f"seed_{seed}/{step}" for step in STEPS] for seed in (1, 2))
METRICS = {"test/acc": 0.5, "test/base_acc": 0.25}


def data_of(shots=16):
    return {"class_path": "kdpl.DomainDataModule", "init_args": {"shots": shots}}


class Commands:
    """Stands for processes: leaves the files of each command, and records what was run."""

    def __init__(self, fail=(), code=1, shots=16):
        self.ran, self.probed, self.fail, self.code, self.shots = [], [], fail, code, shots

    def __call__(self, args, log):
        if args[0] == "compare":
            return self.compare(Path(args[1]))
        folder = Path(next(arg for arg in args if arg.startswith("--out=")).removeprefix("--out="))
        name = f"{folder.parent.name}/{folder.name}/{args[0]}"
        self.ran.append(name)
        with log.open("a") as file:
            file.write("much\nerror: it broke\nTraceback\n")
        if name in self.fail:
            return self.code
        if args[0] == "test":
            (folder / "test.json").write_text(json.dumps({"images": 7, **METRICS}))
        else:
            chosen = [{"class_path": "kdpl.benchmark.choice.BestOnBaseTest", "init_args": {}}]
            model = {"clip": {"model": folder.name}}
            if folder.name == "student":
                model["teacher"] = str(folder.with_name("teacher"))
            callbacks = chosen if "student" in name else None
            settings = {"trainer": {"callbacks": callbacks}, "model": {"init_args": model}}
            labels = {"data": data_of(self.shots), "seed_everything": 1}
            (folder / "config.yaml").write_text(yaml.safe_dump({**settings, **labels}))
            results = {"teacher": "class_vectors.safetensors", "student": "classifier"}
            (folder / results[folder.name]).touch()
        return 0

    def compare(self, run):
        self.probed.append(f"{run.parent.name}/{run.name}")
        if self.probed[-1] in self.fail:
            return self.code
        probe = run / "probe" / run.name
        probe.mkdir(parents=True, exist_ok=True)
        (probe / "test.json").write_text(json.dumps({"images": 4, "test/base_acc": 0.75}))
        about = {"network": f"tiny-{run.name}", "clip": {"model": run.name}}
        (probe / "probe.json").write_text(json.dumps(about))
        return 0


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(runner, "_WAIT_SECONDS", 0)


def run(out, commands, say=lambda _: None, steps=None):
    return run_steps(steps or plan(WHOLE, out), out, say, commands)


def test_everything_is_run_once_and_in_order_and_then_nothing_more(tmp_path):
    commands, said = Commands(), []
    assert run(tmp_path, commands, said.append) == []
    assert commands.ran == [*CHAIN_1, *CHAIN_2] * 2
    assert [line.partition(" (")[0] for line in said[:4]] == [
        f"{DTD_1}/teacher/fit begins",
        f"[0/8] {DTD_1}/teacher/fit: done",
        f"{DTD_1}/teacher/test begins",
        f"[1/8] {DTD_1}/teacher/test: done",
    ]
    assert f"(log: {tmp_path}/{DTD_1}/teacher/fit.log)" in said[0]
    assert (len(said), said[-1][:5]) == (32, "[8/8]")
    again = Commands()
    assert run(tmp_path, again) == []
    assert again.ran == []


def test_a_result_has_its_coordinates_and_so_has_the_linear_probe_of_each_network(tmp_path):
    commands = Commands(fail=["seed_2/student"])
    assert run(tmp_path, commands) == []
    runs = [f"seed_{seed}/{row}" for seed in (1, 2) for row in ("teacher", "student")]
    assert commands.probed == runs * 2
    results = {(r.dataset, r.seed, r.row): r for r in read_all(tmp_path)}
    student = results["oxford_pets", 2, "student"]
    assert (student.protocol, student.setting, student.images) == ("base_to_novel", "", 7)
    assert (student.title, student.metrics) == ("student, distilled", METRICS)
    assert (student.transductive, student.selected_on_test, student.probe) == (True, True, False)
    teacher = results["dtd", 1, "teacher"]
    assert (teacher.title, teacher.transductive) == ("teacher, tuned", False)
    assert not teacher.selected_on_test
    probes = {place: result for place, result in results.items() if result.probe}
    assert len(results) == 8 + len(probes)
    networks = {(seed, row.removeprefix("linear probe: ")) for _, seed, row in probes}
    named = {"tiny-teacher, 16 labels a class", "tiny-student, 16 labels a class"}
    assert networks == {*((1, name) for name in named), (2, "tiny-teacher, 16 labels a class")}
    probe = probes["dtd", 1, "linear probe: tiny-student, 16 labels a class"]
    assert (probe.metrics, probe.images) == ({"test/base_acc": 0.75}, 4)
    assert (probe.transductive, probe.selected_on_test) == (False, False)


@pytest.mark.parametrize(
    ("change", "probed"),
    [
        ({}, ["seed_1/student"]),
        ({"data": data_of(1)}, ["seed_1/teacher", "seed_1/student"]),
        ({"seed": 2}, ["seed_1/teacher", "seed_1/student"]),
        ({"features": "projected"}, ["seed_1/teacher", "seed_1/student"]),
    ],
)
def test_a_network_that_a_row_with_the_same_labels_has_is_not_probed_again(
    change, probed, tmp_path
):
    steps = plan(WHOLE, tmp_path)
    other = tmp_path / DTD_1 / "other/probe/teacher"
    other.mkdir(parents=True)
    (other / "results.json").touch()
    about = {"network": "same", "clip": {"model": "teacher"}, "features": "pooled"}
    about |= {"data": data_of(), "seed": 1, **change}
    (other / "probe.json").write_text(json.dumps(about))
    commands = Commands()
    run(tmp_path, commands, steps=[step for step in steps if step.title.startswith(DTD_1)])
    assert commands.probed == probed


@pytest.mark.parametrize(
    ("shots", "setting", "title"),
    [
        (1, "", "tiny-student, 1 label a class"),
        (None, "", "tiny-student, all labels"),
        (16, "shots_16", "tiny-student"),
    ],
)
def test_the_title_of_a_probe_says_how_many_labels_its_teacher_had(shots, setting, title, tmp_path):
    commands = Commands(shots=shots)
    *teacher, fit, test = [step for step in plan(WHOLE, tmp_path) if step.title.startswith(DTD_1)]
    assert run(tmp_path, commands, steps=[*teacher, fit]) == []
    # a student sees no labels: its own setting says nothing
    config = test.folder / "config.yaml"
    config.write_text(config.read_text().replace(f"shots: {shots}", "shots: 9"))
    changed = test.run.model_copy(update={"setting": setting})
    assert run(tmp_path, commands, steps=[replace(test, run=changed)]) == []
    probe = json.loads((test.folder / "probe/student/results.json").read_text())
    assert probe["title"] == probe["row"] == f"linear probe: {title}"


def test_an_interrupted_probe_leaves_the_test_to_be_done_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Commands(fail=["seed_1/teacher"], code=130))
    assert not (tmp_path / DTD_1 / "teacher/results.json").exists()
    # it was killed before the probe became a result
    again = Commands()
    again.compare(tmp_path / DTD_1 / "teacher")
    assert run(tmp_path, again) == []
    assert again.ran[0] == "seed_1/teacher/test"
    assert (tmp_path / DTD_1 / "teacher/probe/teacher/results.json").exists()


@pytest.mark.parametrize(("protocol", "setting"), [("few_shot", "shots_0"), ("cross_dataset", "")])
def test_without_labels_of_the_classes_there_is_no_probe(protocol, setting, tmp_path):
    commands, (fit, test, *_) = Commands(), plan(WHOLE, tmp_path)
    changed = test.run.model_copy(update={"protocol": protocol, "setting": setting})
    assert run(tmp_path, commands, steps=[fit, replace(test, run=changed)]) == []
    assert commands.probed == []


def test_a_failure_keeps_back_only_those_that_need_it(tmp_path):
    commands = Commands(fail=["seed_2/teacher/fit"])
    failures = run(tmp_path, commands)
    assert commands.ran == [*CHAIN_1, "seed_2/teacher/fit"] * 2
    assert (len(failures), {step.run.seed for step, _ in failures}) == (8, {2})
    fixed = Commands()
    assert run(tmp_path, fixed) == []
    assert fixed.ran == CHAIN_2 * 2


@pytest.mark.parametrize(
    ("code", "said"), [(0, "it ended without {}/"), (-9, "it was killed by signal 9: ")]
)
def test_a_command_that_leaves_no_result_has_failed(code, said, tmp_path):
    failures = run(tmp_path, lambda *_: code)
    assert failures[0][1].startswith(said.format(tmp_path / DTD_1))


@pytest.mark.parametrize(
    ("code", "error"),
    [(130, KeyboardInterrupt), (143, KeyboardInterrupt), (-2, KeyboardInterrupt), (75, SystemExit)],
)
def test_an_interruption_ends_the_campaign_which_is_resumed(code, error, tmp_path):
    with pytest.raises(error):
        run(tmp_path, Commands(fail=["seed_1/student/fit"], code=code))
    again = Commands()
    assert run(tmp_path, again) == []
    assert again.ran[:2] == CHAIN_1[2:]


@pytest.mark.parametrize(
    "lock", [f".locks/{DTD_1.replace('/', '+')}+teacher+fit.lock", f"{DTD_1}/teacher/.lock"]
)
def test_a_task_that_another_process_works_on_is_left_to_it_and_waited_for(lock, tmp_path):
    (tmp_path / lock).parent.mkdir(parents=True)
    held = FileLock(tmp_path / lock)
    held.acquire()
    others = Commands()

    def other_process_finishes(line):
        if not line.startswith("waiting for other processes"):
            return
        folder = tmp_path / DTD_1 / "teacher"
        folder.mkdir(parents=True, exist_ok=True)
        others(["fit", f"--out={folder}"], folder / "fit.log")
        held.release()

    commands = Commands()
    assert run(tmp_path, commands, other_process_finishes) == []
    assert sorted([*commands.ran, *others.ran]) == sorted([*CHAIN_1, *CHAIN_2] * 2)
    assert commands.ran[-3:] == CHAIN_1[1:]


def test_without_an_error_the_last_line_that_a_start_wrote_is_what_went_wrong(tmp_path):
    log = tmp_path / "fit.log"
    assert last_error(log) == "it printed nothing"
    before = "error: of an earlier start, café\n"
    log.write_text(f"{before}Traceback:\n  ValueError: 3\n\n")
    assert last_error(log, len(before.encode())) == "ValueError: 3"
