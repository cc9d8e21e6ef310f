import multiprocessing
import os
import signal

from kdpl.benchmark.locks import lock


def hold(out, taken, end):
    with lock(out, "a/b/fit") as held:
        taken.put(held is not None)
        end.wait(30)


def held_by_another(out):
    context = multiprocessing.get_context("fork")
    taken, end = context.Queue(), context.Event()
    process = context.Process(target=hold, args=(out, taken, end))
    process.start()
    assert taken.get(timeout=60)
    return process, end


def test_one_process_at_a_time_has_a_lock(tmp_path):
    process, end = held_by_another(tmp_path)
    with lock(tmp_path, "a/b/fit") as held, lock(tmp_path, "a/b/test") as other:
        assert held is None
        assert other is not None
    end.set()
    process.join(60)
    with lock(tmp_path, "a/b/fit") as held:
        assert held is not None


def test_a_killed_process_leaves_no_lock(tmp_path):
    process, _ = held_by_another(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    with lock(tmp_path, "a/b/fit") as held:
        assert held is not None


def test_a_lock_stays_with_the_process_that_it_was_handed_to(tmp_path):
    with lock(tmp_path, "a/b/fit") as held:
        copy = os.dup(held)  # what a worker gets
    with lock(tmp_path, "a/b/fit") as again:
        assert again is None
    os.close(copy)
    with lock(tmp_path, "a/b/fit") as again:
        assert again is not None
