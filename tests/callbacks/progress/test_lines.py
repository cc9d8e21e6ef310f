import re
from threading import Condition
from unittest.mock import Mock

import pytest
import world
from lightning.pytorch.callbacks import LambdaCallback, RichProgressBar
from lightning.pytorch.utilities import rank_zero_only
from runs import fit_teacher

from kdpl.data.parallel import progress_bar
from kdpl.runtime import messages


class Clock:
    """Stands in for the event for which the writer of lines waits; its time is the test's."""

    def __init__(self):
        self.now, self.until, self.ended, self.changed = 0, None, False, Condition()

    def wait(self, seconds):
        with self.changed:
            self.until = self.now + seconds
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: self.ended or self.until is None, timeout=60)
            return self.ended

    def set(self):
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def advance(self, seconds):
        """Let time pass, second by second, until the writer waits again after each line."""
        for _ in range(seconds):
            with self.changed:
                assert self.changed.wait_for(lambda: self.until is not None, timeout=60)
                self.now += 1
                if self.now >= self.until:
                    self.until = None
                    self.changed.notify_all()
                    assert self.changed.wait_for(lambda: self.until is not None, timeout=60)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(messages, "Event", lambda: clock)
    return clock


def test_a_training_writes_a_line_at_least_once_a_minute_into_a_file(
    clock, tmp_path, monkeypatch, capsys
):
    original, written = RichProgressBar.on_train_batch_end, []

    def slow(*args):
        original(*args)
        clock.advance(60)
        written.append(capsys.readouterr().out.splitlines())

    monkeypatch.setattr(RichProgressBar, "on_train_batch_end", slow)
    assert fit_teacher(tmp_path / "run", "--trainer.enable_progress_bar=true") == 0
    # epoch and step after each of the six steps
    assert len(written) == 6
    for i, lines in enumerate(written):
        assert any(re.match(rf"Epoch {i // 3}/1 .* {i % 3 + 1}/3 ", line) for line in lines)
    assert clock.ended


def test_a_message_beside_a_bar_is_one_line_however_long(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    line = f"picture: {'/a folder with blanks' * 9}"
    saying = LambdaCallback(on_train_batch_end=lambda *_: messages.inform(line))
    options = {"enable_progress_bar": True, "limit_train_batches": 2, "callbacks": [saying]}
    world.quiet_trainer(tmp_path, **options).fit(world.Probe(), datamodule=world.digits(5))
    assert capsys.readouterr().out.count(line) == 2


def test_other_work_writes_title_counts_and_time_left_once_a_minute_also_of_long_steps(
    clock, capsys
):
    with progress_bar() as progress:
        progress.get_time = lambda: clock.now
        task = progress.add_task("features of images", total=100)
        for done, left in ((0, "-:--:--"), (20, "-:--:--"), (40, "0:03:00")):
            progress.update(task, completed=done)
            clock.advance(60)
            lines = capsys.readouterr().err.splitlines()
            expected = rf"features of images +{done}/100 {left} left *"
            assert len([line for line in lines if re.fullmatch(expected, line)]) == len(lines) > 0
    assert clock.ended
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("where", ["terminal", "another rank"])
def test_no_line_is_written_on_a_terminal_and_by_other_processes(where, monkeypatch, capsys):
    thread = Mock()
    monkeypatch.setattr(messages, "Thread", thread)
    if where == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
    if where == "another rank":
        monkeypatch.setattr(rank_zero_only, "rank", 1)
    with progress_bar() as progress:
        progress.add_task("features of images", total=100)
    assert not thread.called
    assert ("features of images" in capsys.readouterr().err) == (where == "terminal")


def test_a_bar_that_is_not_shown_writes_no_line(clock, capsys):
    with progress_bar(shown=False) as progress:
        progress.add_task("classifying", total=100)
        clock.advance(60)
    assert capsys.readouterr().err == ""
