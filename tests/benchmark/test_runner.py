import json
import multiprocessing
import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from kdpl.runtime.processes import INTERRUPTED

from kdpl.benchmark import runner
from kdpl.benchmark.campaign import parse_campaign
from kdpl.benchmark.protocols import Place, plan
from kdpl.benchmark.results import Result, read_all

ROOT = Path(__file__).parents[2]
CAMPAIGN = """
protocols: [base_to_novel]
datasets: [dtd, oxford_pets]
seeds: [1, 2]
rows:
  teacher: {title: "**the teacher**", teacher: configs/teacher/quickstart.yaml}
  student: {student: configs/student/quickstart.yaml, of: teacher}
"""
WHOLE = parse_campaign(yaml.safe_load(CAMPAIGN), "mine", "mine.yaml")
DTD_1 = "base_to_novel/dtd/seed_1"


class Shown:
    """A display that keeps what it is told."""

    def __init__(self):
        self.ended, self.waited = [], 0

    def begin(self, task):
        pass

    def tick(self):
        pass

    def wait(self, others):
        self.waited = max(self.waited, others)

    def end(self, task, done, _seconds, fault, metrics):
        self.ended.append((task.name, done, fault, metrics))


class Commands:
    """In place of processes: leaves what each command leaves, and keeps what was run."""

    def __init__(self, fail=(), code=1):
        self.ran, self.fail, self.code = [], fail, code

    def __call__(self, _function, args, log, held, tick):
        assert held is not None
        folder = Path(next(arg for arg in args if arg.startswith("--out=")).removeprefix("--out="))
        name = f"{folder.parent.name}/{folder.name}/{args[0]}"
        self.ran.append(name)
        with log.open("a") as file:
            file.write("much\nerror: it broke\nTraceback\n")
        tick()
        if name in self.fail:
            return self.code
        if args[0] == "test":
            (folder / "test.json").write_text(json.dumps({"images": 7, "test/acc": 0.5}))
        else:
            settings = {"model": {"init_args": {"choice": "best_on_base_test" if "student" in name else "last"}}}
            (folder / "config.yaml").write_text(yaml.safe_dump(settings))
            (folder / ("classifier" if folder.name == "student" else "class_vectors.safetensors")).touch()
        return 0


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(out, monkeypatch, commands, shown=None, tasks=None):
    monkeypatch.setattr(runner, "in_own_process", commands)
    every = plan(WHOLE, Place(out))
    return runner.run_tasks(WHOLE, every if tasks is None else tasks, out, shown or Shown())


def test_everything_is_run_once_and_in_order_and_then_nothing_more(tmp_path, monkeypatch):
    commands, shown = Commands(), Shown()
    assert run(tmp_path, monkeypatch, commands, shown) == []
    chain = ["teacher/fit", "teacher/test", "student/fit", "student/test"]
    assert commands.ran == [f"seed_{seed}/{step}" for seed in (1, 2, 1, 2) for step in chain]
    assert [done for _, done, _, _ in shown.ended] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]
    assert shown.ended[1] == (f"{DTD_1}/teacher/test", 1, None, {"images": 7, "test/acc": 0.5})
    again = Commands()
    assert run(tmp_path, monkeypatch, again) == []
    assert again.ran == []


def test_a_result_has_its_coordinates(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch, Commands())
    results = {(r.dataset, r.seed, r.row): r for r in read_all(tmp_path)}
    assert len(results) == 8
    student = results["oxford_pets", 2, "student"]
    assert set(student.seconds) == {"fit", "test"}
    assert student == Result(
        protocol="base_to_novel",
        setting="",
        dataset="oxford_pets",
        seed=2,
        row="student",
        title="student",
        metrics={"test/acc": 0.5},
        images=7,
        transductive=True,
        selected_on_test=True,
        seconds=student.seconds,
    )
    teacher = results["dtd", 1, "teacher"]
    assert (teacher.title, teacher.transductive, teacher.selected_on_test) == ("the teacher", False, False)


def test_a_failure_keeps_back_those_alone_that_need_it(tmp_path, monkeypatch):
    commands, shown = Commands(fail=["seed_2/teacher/fit"]), Shown()
    failures = run(tmp_path, monkeypatch, commands, shown)
    chain = ["teacher/fit", "teacher/test", "student/fit", "student/test"]
    one = [f"seed_1/{step}" for step in chain]
    assert commands.ran == [*one, "seed_2/teacher/fit", *one, "seed_2/teacher/fit"]
    assert {failure.task.name: failure.fault for failure in failures} == {
        f"base_to_novel/{dataset}/seed_2/{step}": fault
        for dataset in ("dtd", "oxford_pets")
        for step, fault in {
            "teacher/fit": "it broke",
            "teacher/test": f"it needs base_to_novel/{dataset}/seed_2/teacher/fit, which failed",
            "student/fit": f"it needs base_to_novel/{dataset}/seed_2/teacher/fit, which failed",
            "student/test": f"it needs base_to_novel/{dataset}/seed_2/student/fit, which failed",
        }.items()
    }
    assert [fault for _, _, fault, _ in shown.ended if fault] == ["it broke", "it broke"]
    mended = Commands()
    assert run(tmp_path, monkeypatch, mended) == []
    assert mended.ran == [f"seed_2/{step}" for step in chain] * 2


def test_a_command_that_leaves_no_result_has_failed(tmp_path, monkeypatch):
    failures = run(tmp_path, monkeypatch, lambda *_, **__: 0)
    assert failures[0].fault.startswith(f"it ended without {tmp_path / DTD_1}/teacher/class_vectors.safetensors: ")


def test_ctrl_c_ends_it_all_and_the_seconds_are_kept(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, monkeypatch, Commands(fail=["seed_1/student/fit"], code=INTERRUPTED))
    assert "fit" in json.loads((tmp_path / DTD_1 / "student/seconds.json").read_text())
    assert run(tmp_path, monkeypatch, Commands()) == []


def test_a_task_by_itself_needs_what_it_needs_to_be_there(tmp_path, monkeypatch):
    tasks = [task for task in plan(WHOLE, Place(tmp_path)) if task.run.name == f"{DTD_1}/student"]
    commands = Commands()
    failures = run(tmp_path, monkeypatch, commands, tasks=tasks)
    assert commands.ran == []
    assert failures[0].fault == f"it needs {DTD_1}/teacher/fit, which is not done: run that first"
    assert len(failures) == 2
    (tmp_path / DTD_1 / "teacher").mkdir(parents=True)
    (tmp_path / DTD_1 / "teacher/class_vectors.safetensors").touch()
    assert run(tmp_path, monkeypatch, commands, tasks=tasks) == []
    assert commands.ran == ["seed_1/student/fit", "seed_1/student/test"]


def share(out, kept):
    """Work on the campaign as one of several processes, a tenth of a second a task."""
    commands, shown = Commands(), Shown()

    def slowly(*args, **kwargs):
        time.sleep(0.1)
        return commands(*args, **kwargs)

    runner.in_own_process = slowly
    runner._WAIT_SECONDS = 0.02
    failures = runner.run_tasks(WHOLE, plan(WHOLE, Place(out)), out, shown)
    kept.put((os.getpid(), [name for name, *_ in shown.ended], len(failures)))


def test_two_processes_at_once_share_the_work_and_do_nothing_twice(tmp_path):
    context = multiprocessing.get_context("fork")
    kept = context.Queue()
    processes = [context.Process(target=share, args=(tmp_path, kept)) for _ in range(2)]
    for process in processes:
        process.start()
    reports = [kept.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    names = [name for _, ended, _ in reports for name in ended]
    assert sorted(names) == sorted(task.name for task in plan(WHOLE, Place(tmp_path)))
    assert all(len(ended) >= 2 for _, ended, _ in reports)
    assert [failures for *_, failures in reports] == [0, 0]
    assert len(list(read_all(tmp_path))) == 8


def test_what_another_process_finished_before_the_lock_was_free_is_not_run_again(tmp_path, monkeypatch):
    locked = []

    @contextmanager
    def late(_out, name):
        task = next(task for task in plan(WHOLE, Place(tmp_path)) if task.name == name)
        if task.kind == "fit" and task.run.row == "teacher":
            task.folder.mkdir(parents=True)
            task.result.touch()
            (task.folder / "config.yaml").write_text("model: {init_args: {}}")
        locked.append(name)
        yield 0

    monkeypatch.setattr(runner, "lock", late)
    commands = Commands()
    assert run(tmp_path, monkeypatch, commands) == []
    assert len(locked) == 16
    assert len(commands.ran) == 12
    assert not any(name.endswith("teacher/fit") for name in commands.ran)
