import csv
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from campaigns import BASE_TO_NOVEL, FEW, ROOT, make_trees, started, written
from runs import files_of

from kdpl.benchmark.published import METHODS
from kdpl.benchmark.results import read_all


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def results_in(out):
    while True:
        try:
            return {file: file.stat().st_mtime_ns for file in out.glob("*/**/results.json")}
        except FileNotFoundError:
            continue  # a folder has been looked into that was gone by then


def test_killed_at_any_moment_a_campaign_is_completed_by_the_same_command_and_nothing_is_done_twice(tmp_path):
    data, out = make_trees(tmp_path / "data"), tmp_path / "out"
    command = (written(tmp_path, BASE_TO_NOVEL), f"--root={data}", f"--out={out}", *FEW)
    said, done = [], []
    for enough in (1, 4):
        process = started(*command)
        end = time.monotonic() + 60
        while len(results_in(out)) < enough:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(random.uniform(0, 2))  # noqa: S311 - any moment will do
        process.send_signal(signal.SIGKILL)
        said.append(process.communicate(timeout=60)[0])
        done.append({file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name in DONE})
    process = started(*command)
    text, err = process.communicate(timeout=120)
    assert process.returncode == 0, text + err
    said.append(text)
    assert "all 8 runs are done: " in text
    assert len(results_in(out)) == 8
    for before in done:
        assert before.items() <= {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name in DONE}.items()
    finished = re.findall(r"^\[\d/8\] (\S+): ", "".join(said), re.MULTILINE)
    assert len(finished) == len(set(finished))
    # each task was begun once, but for the two that were cut
    assert sum(file.read_text().count("test/hm") for file in out.rglob("test.log")) <= 8 + 2
    assert not list(out.rglob(".*.json.*"))
    assert_tables(out)
    assert_second_start_does_nothing(command, out)


DONE = ("results.json", "class_vectors.safetensors", "classifier.json")


def assert_tables(out):
    process = subprocess.run(
        [sys.executable, "-m", "kdpl", "table", out], capture_output=True, text=True, check=True, cwd=out
    )
    assert process.stderr == ""
    assert process.stdout == (out / "table.md").read_text()
    lines = [line for line in process.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 * 2
    assert "missing" not in process.stdout
    assert "† transductive" in process.stdout
    for name in ("dtd", "oxford_pets"):
        (line,) = [line for line in lines if line.replace("\\", "").startswith(f"| {name} | **student, distilled** †")]
        for figure in METHODS["promptkd"].by_dataset[name].values():
            assert f"[{figure:.2f}, " in line
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert len(rows) == 3 * 2 * 3
    assert {row["seeds"] for row in rows} == {"2"}
    for row in rows:
        if row["dataset"] != "average":
            found = [r for r in read_all(out) if (r.dataset, r.row) == (row["dataset"], row["row"])]
            mean = sum(100 * r.metrics[row["metric"]] for r in found) / len(found)
            assert float(row["mean"]) == pytest.approx(mean, abs=1e-4)
    assert (out / "table.tex").read_text().count(r"\textbf{student, distilled}") == 3


def assert_second_start_does_nothing(command, out):
    before = files_of(out)
    process = started(*command)
    text, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert text.startswith("all 8 runs are done")
    after = {name: value for name, value in files_of(out).items() if not name.startswith("table")}
    assert after.items() <= before.items()


def test_ctrl_c_ends_a_campaign_in_seconds_with_one_line(tmp_path):
    data, out = make_trees(tmp_path / "data"), tmp_path / "out"
    forever = ["--trainer.max_epochs=3000", "--data.init_args.shots=1", "--data.init_args.num_workers=0"]
    process = started(written(tmp_path, BASE_TO_NOVEL), f"--root={data}", f"--out={out}", *forever)
    end = time.monotonic() + 60
    while not (out / "base_to_novel/dtd/seed_1/teacher/checkpoints/last.ckpt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    # as a terminal does: to every process of the group
    os.killpg(process.pid, signal.SIGINT)
    text, err = process.communicate(timeout=60)
    assert (process.returncode, text, err) == (130, "", "interrupted\n")
