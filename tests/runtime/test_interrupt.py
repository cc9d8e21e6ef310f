import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import soon

from kdpl.runtime import interrupt


@pytest.fixture(autouse=True)
def default_handler():
    """Both signals as in a process of one's own."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    hook = sys.unraisablehook
    yield
    sys.unraisablehook = hook
    for number, handler in before.items():
        signal.signal(number, handler)


def started(script, *args, **variables):
    """A process that runs a script."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **variables},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def run(script, *args, after=None, number=signal.SIGINT, **variables):
    """Exit code, output and errors of a script, which gets a signal some seconds after it said "now"."""
    process = started(script, *args, **variables)
    said = ""
    if after is not None:
        while "now" not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
        time.sleep(after)
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, said + out, err


def test_held_back_it_strikes_after_the_moment():
    done = []

    @interrupt.held_back()
    def work():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        done.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with interrupt.held_back():
        done.append(2)
    assert done == [1, 2]


def test_held_back_where_another_thread_hears_it_too():
    script = """
import os, signal, threading, time
from kdpl.runtime.interrupt import held_back
threading.Thread(target=time.sleep, args=(1.0,)).start()
try:
    with held_back():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        print("whole")
except KeyboardInterrupt:
    print("then it struck")
"""
    assert run(script) == (0, "whole\nthen it struck\n", "")


def heard(queue, calls):
    if calls:
        interrupt.hear()
    queue.put(signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ()))


@pytest.mark.parametrize("calls", [False, True])
def test_what_starts_while_it_is_held_back_hears_it_only_if_it_asks(calls):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with interrupt.held_back():
        process = context.Process(target=heard, args=(queue, calls))
        process.start()
    assert queue.get(timeout=30) is calls
    process.join()


def test_an_interrupt_that_a_destructor_swallows_strikes_again():
    # what Python does of itself: the error is told and forgotten, and the program goes on
    script = """
import signal, sys, time, weakref
from kdpl.runtime.interrupt import whole_process

class Thing:
    pass

def gone(_):
    signal.raise_signal(signal.SIGINT)

def work():
    thing = Thing()
    reference = weakref.ref(thing, gone)
    del thing
    print("went on")
    time.sleep(20)
    print("to its end")

try:
    if sys.argv[1] == "minded":
        with whole_process():
            work()
    else:
        time.sleep = lambda _: None
        work()
except KeyboardInterrupt:
    print("it struck")
"""
    code, out, err = run(script, "plain")
    assert (code, out) == (0, "went on\nto its end\n")
    assert "Exception ignored" in err
    assert run(script, "minded") == (0, "went on\nit struck\n", "")


def test_other_errors_that_a_destructor_swallows_are_told_as_ever():
    script = """
from kdpl.runtime.interrupt import whole_process
class Thing:
    def __del__(self):
        raise ValueError("odd")
with whole_process():
    Thing()
"""
    code, _, err = run(script)
    assert code == 0
    assert "ValueError: odd" in err


# neither Python's code nor a call of the system that a signal would end
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
WORK = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 500_000_000)"


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "ended by SIGTERM\n")]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_it_ends_at_once_in_code_that_is_not_pythons(rank, number, code, word):
    script = f"""
from kdpl.runtime.interrupt import ends_at_once, whole_process
with whole_process(), ends_at_once(lambda: print("others too", flush=True)):
    print("now", flush=True)
    {WORK}
"""
    with soon():
        # as torchrun names it
        said = run(script, after=0.3, number=number, RANK=str(rank), **TORCHRUN)
    assert said == (code, "now\nothers too\n", word if rank == 0 else "")


def test_it_ends_at_once_where_nobody_reads_what_it_says():
    script = f"""
from kdpl.runtime.interrupt import ends_at_once, whole_process
def fail():
    raise ValueError("what else has to be done cannot be done")
with whole_process(), ends_at_once(fail):
    print("now", flush=True)
    {WORK}
"""
    with soon(), started(script) as process:
        process.stderr.close()
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == interrupt.INTERRUPTED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_the_first_of_a_training_started_is_ended_by_that_one(number):
    script = """
import time
from kdpl.runtime.interrupt import ends_at_once, hear, whole_process
with whole_process(), ends_at_once():
    hear()
    print("now", flush=True)
    time.sleep(0.5)
    print("still there")
"""
    first = {"LOCAL_RANK": "1", "KDPL_FIRST_PROCESS": str(os.getpid())}
    assert run(script, after=0.1, number=number, **first) == (0, "now\nstill there\n", "")


def test_sigterm_is_an_interrupt_of_another_word():
    script = """
import time
from kdpl.__main__ import call
from kdpl.runtime.interrupt import whole_process
import sys
def work(_):
    print("now", flush=True)
    time.sleep(20)
with whole_process():
    code = call(work, [])
sys.exit(code)
"""
    assert run(script, after=0.1, number=signal.SIGTERM) == (143, "now\n", "ended by SIGTERM\n")
    assert run(script, after=0.1) == (130, "now\n", "interrupted\n")


def test_a_second_one_ends_at_once_what_takes_long_after_the_first():
    script = f"""
import os, signal, sys, threading, time
from kdpl.runtime.interrupt import next_ends_at_once, whole_process
def again():
    # the first once more, as whoever passes it on sends it
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
    print("again", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
with whole_process():
    try:
        print("now", flush=True)
        time.sleep(20)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        next_ends_at_once(lambda: print("others too", flush=True))
        threading.Thread(target=again).start()
        {WORK}
        print("at its leisure")
"""
    with soon():
        said = run(script, after=0.1, number=signal.SIGTERM)
    assert said == (130, "now\nagain\nothers too\n", "interrupted\n")


def test_it_ends_at_once_in_an_import_that_takes_the_error_for_another():
    script = """
import time
from kdpl.runtime.interrupt import ends_at_once
with ends_at_once():
    try:
        print("now", flush=True)
        time.sleep(20)
    except BaseException:
        print("a module is missing")
"""
    assert run(script, after=0.1) == (interrupt.INTERRUPTED, "now\n", "interrupted\n")


def test_after_it_ends_at_once_all_is_as_before():
    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for _ in range(3):
        with interrupt.ends_at_once():
            pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    end = time.monotonic() + 10
    while descriptors() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert descriptors() <= before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_once_all_is_done_it_ends_the_process_without_a_word():
    script = """
import atexit, time
from kdpl.runtime.interrupt import whole_process
with whole_process():
    pass
atexit.register(lambda: (print("now", flush=True), time.sleep(20)))
"""
    assert run(script, after=0.1) == (-signal.SIGINT, "now\n", "")


def test_a_process_whose_shell_ignores_it_ignores_it_and_so_does_what_it_starts():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    started = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    with interrupt.whole_process(), interrupt.ends_at_once(), interrupt.held_back():
        signal.raise_signal(signal.SIGINT)
        said = subprocess.run([sys.executable, "-c", started], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said == "True\n"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_a_program_of_its_users_own_ctrl_c_stays_theirs():
    interrupt.next_ends_at_once()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
