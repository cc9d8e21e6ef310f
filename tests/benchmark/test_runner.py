import json
from pathlib import Path

import pytest
import yaml
from campaigns import BASE_TO_NOVEL, ROOT, campaign
from filelock import FileLock

from kdpl.benchmark import runner
from kdpl.benchmark.protocols import Place, plan
from kdpl.benchmark.results import Result, read_all
from kdpl.benchmark.runner import last_error, run_tasks
from kdpl.runtime import slurm

WHOLE = campaign(BASE_TO_NOVEL)
DTD_1 = "base_to_novel/dtd/seed_1"
CHAIN = ["teacher/fit", "teacher/test", "student/fit", "student/test"]


class Shown:
    """A display that records its calls."""

    def __init__(self, waits=()):
        self.ended, self.waits = [], list(waits)

    def begin(self, task):
        pass

    def wait(self, _others):
        self.waits.pop(0)()

    def end(self, task, done, _seconds, fault, metrics):
        self.ended.append((task.name, done, fault, metrics))


class Commands:
    """Stands for processes: leaves the files of each command, and records what was run."""

    def __init__(self, fail=(), code=1):
        self.ran, self.fail, self.code = [], fail, code

    def __call__(self, args, log):
        folder = Path(next(arg for arg in args if arg.startswith("--out=")).removeprefix("--out="))
        name = f"{folder.parent.name}/{folder.name}/{args[0]}"
        self.ran.append(name)
        with log.open("a") as file:
            file.write("much\nerror: it broke\nTraceback\n")
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
    monkeypatch.setattr(runner, "_WAIT_SECONDS", 0)


def run(out, commands, shown=None, tasks=None):
    return run_tasks(WHOLE, tasks or plan(WHOLE, Place(out)), out, shown or Shown(), commands)


def test_everything_is_run_once_and_in_order_and_then_nothing_more(tmp_path):
    commands, shown = Commands(), Shown()
    assert run(tmp_path, commands, shown) == []
    assert commands.ran == [f"seed_{seed}/{step}" for seed in (1, 2, 1, 2) for step in CHAIN]
    assert [done for _, done, _, _ in shown.ended] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]
    assert shown.ended[1] == (f"{DTD_1}/teacher/test", 1, None, {"images": 7, "test/acc": 0.5})
    again = Commands()
    assert run(tmp_path, again) == []
    assert again.ran == []


def test_a_result_has_its_coordinates(tmp_path):
    run(tmp_path, Commands())
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
        title="student, distilled",
        metrics={"test/acc": 0.5},
        images=7,
        transductive=True,
        selected_on_test=True,
        seconds=student.seconds,
    )
    teacher = results["dtd", 1, "teacher"]
    assert (teacher.title, teacher.transductive, teacher.selected_on_test) == ("teacher, tuned", False, False)


def test_a_failure_keeps_back_only_those_that_need_it(tmp_path):
    commands = Commands(fail=["seed_2/teacher/fit"])
    failures = run(tmp_path, commands)
    one = [f"seed_1/{step}" for step in CHAIN]
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
    fixed = Commands()
    assert run(tmp_path, fixed) == []
    assert fixed.ran == [f"seed_2/{step}" for step in CHAIN] * 2


@pytest.mark.parametrize(
    ("code", "said"),
    [(0, "it ended without {}/teacher/class_vectors.safetensors: "), (-9, "it was killed by signal 9: ")],
)
def test_a_command_that_leaves_no_result_has_failed(code, said, tmp_path):
    failures = run(tmp_path, lambda *_: code)
    assert failures[0].fault.startswith(said.format(tmp_path / DTD_1))


@pytest.mark.parametrize(
    ("code", "error"),
    [(130, KeyboardInterrupt), (143, KeyboardInterrupt), (-2, KeyboardInterrupt), (75, slurm.Requeued)],
)
def test_an_interruption_ends_the_campaign_and_the_seconds_are_kept(code, error, tmp_path):
    with pytest.raises(error):
        run(tmp_path, Commands(fail=["seed_1/student/fit"], code=code))
    assert "fit" in json.loads((tmp_path / DTD_1 / "student/seconds.json").read_text())
    assert run(tmp_path, Commands()) == []


def test_a_task_by_itself_needs_others_to_be_done(tmp_path):
    tasks = [task for task in plan(WHOLE, Place(tmp_path)) if task.run.name == f"{DTD_1}/student"]
    commands = Commands()
    failures = run(tmp_path, commands, tasks=tasks)
    assert commands.ran == []
    assert failures[0].fault == f"it needs {DTD_1}/teacher/fit, which is not done: run that first"
    assert len(failures) == 2
    (tmp_path / DTD_1 / "teacher").mkdir(parents=True)
    (tmp_path / DTD_1 / "teacher/class_vectors.safetensors").touch()
    assert run(tmp_path, commands, tasks=tasks) == []
    assert commands.ran == ["seed_1/student/fit", "seed_1/student/test"]


@pytest.mark.parametrize("lock", [f".locks/{DTD_1.replace('/', '+')}+teacher+fit.lock", f"{DTD_1}/teacher/.lock"])
def test_a_task_that_another_process_works_on_is_left_to_it_and_waited_for(lock, tmp_path):
    (tmp_path / lock).parent.mkdir(parents=True)
    held = FileLock(tmp_path / lock)
    held.acquire()
    others = Commands()

    def other_process_finishes():
        folder = tmp_path / DTD_1 / "teacher"
        folder.mkdir(parents=True, exist_ok=True)
        others(["fit", f"--out={folder}"], folder / "fit.log")
        held.release()

    commands = Commands()
    assert run(tmp_path, commands, Shown(waits=[lambda: None, other_process_finishes])) == []
    assert sorted([*commands.ran, *others.ran]) == sorted(
        f"seed_{seed}/{step}" for seed in (1, 2, 1, 2) for step in CHAIN
    )
    assert commands.ran[-3:] == [f"seed_1/{step}" for step in CHAIN[1:]]


def test_the_last_error_of_a_log_is_what_went_wrong(tmp_path):
    log = tmp_path / "fit.log"
    assert last_error(log) == "it printed nothing"
    log.write_text("error: first\nTraceback:\n  ValueError: 3\n\n")
    assert last_error(log) == "first"
    log.write_text("Traceback:\n  ValueError: 3\n\n")
    assert last_error(log) == "ValueError: 3"
    before = "error: of an earlier start, café\n"
    log.write_text(f"{before}Killed\n")
    assert last_error(log, len(before.encode())) == "Killed"
