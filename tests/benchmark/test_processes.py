import os
import re
import signal

import pytest
from campaigns import BASE_TO_NOVEL, FEW, make_trees, started, written
from runs import wait_for

pytestmark = pytest.mark.slow

DONE = ("results.json", "class_vectors.safetensors")


@pytest.fixture
def command(tmp_path):
    data = make_trees(tmp_path / "data")
    file = written(tmp_path, BASE_TO_NOVEL.replace(", oxford_pets", ""))
    return file, f"--root={data}", f"--out={tmp_path / 'out'}", "--rows", "teacher", *FEW


def done_in(out):
    return {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.name in DONE}


def ends_well(process):
    text, err = process.communicate()
    assert process.returncode == 0, text + err
    return text


def test_two_processes_complete_a_killed_campaign_and_nothing_is_done_twice(command, tmp_path):
    out = tmp_path / "out"
    process = started(*command)
    first_fit = out / "base_to_novel/dtd/seed_1/teacher/class_vectors.safetensors"
    wait_for(lambda: process.poll() is not None or first_fit.exists())
    assert process.poll() is None, process.communicate()
    # without its child, which ends by itself
    process.kill()
    before = done_in(out)
    killed, _ = process.communicate()
    texts = [ends_well(process) for process in [started(*command), started(*command)]]
    assert all("all 2 runs are done: " in text for text in texts)
    assert before.items() <= done_in(out).items()
    finished = [
        name
        for text in (killed, *texts)
        for name in re.findall(r"^\[\d/2\] (\S+): ", text, re.MULTILINE)
    ]
    assert len(finished) == len(set(finished))
    # the first was killed before or after it said that its fit was done
    step = "base_to_novel/dtd/seed_{}/teacher/{}".format
    others = {step(2, "fit"), step(1, "test"), step(2, "test")}
    assert others <= set(finished) <= {*others, step(1, "fit")}
    # those of the linear probes stand beside them
    assert len(list(out.rglob("results.json"))) == 2 + 2


@pytest.mark.parametrize(
    ("number", "group", "code", "said"),
    [(signal.SIGINT, True, 130, "interrupted"), (signal.SIGTERM, False, 143, "terminated")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_signal_ends_a_campaign_and_its_child_with_one_line(
    number, group, code, said, command, tmp_path
):
    process = started(*command, "--trainer.max_epochs=3000")
    checkpoint = tmp_path / "out/base_to_novel/dtd/seed_1/teacher/checkpoints/last.ckpt"
    wait_for(lambda: process.poll() is not None or checkpoint.exists())
    # a terminal interrupts every process of the group
    (os.killpg if group else os.kill)(process.pid, number)
    text, err = process.communicate()
    assert (process.returncode, text.count("\n")) == (code, 1)
    assert err.splitlines() == [said]
    assert "Traceback" not in (checkpoint.parents[1] / "fit.log").read_text()
