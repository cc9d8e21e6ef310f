"""Commands in processes of their own, so that nothing of one reaches the next; imports neither torch nor Lightning."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from kdpl.__main__ import call, main
from kdpl.runtime import fork_server, interrupt, slurm
from kdpl.runtime.interrupt import INTERRUPTED, TERMINATED, Terminated
from kdpl.runtime.launch import needs_srun
from kdpl.runtime.worker import end_with_parent

ENDED_FROM_OUTSIDE = (INTERRUPTED, TERMINATED, slurm.REQUEUED)
"""Exit codes of a step after which the command that started it ends as well: Ctrl-C, SIGTERM, Slurm."""

_TICK_SECONDS = 0.5
# the time within which a process ends that heard Ctrl-C, but for one that takes long to say goodbye to a server
_HEARD_SECONDS = 10
_PARTING_SECONDS = 1

# commands whose work several processes share
_OF_SEVERAL = ("fit", "validate", "test")


def in_own_process(
    function: Callable[[Any], None],
    argument: Any,  # noqa: ANN401
    log: Path | None = None,
    held: int | None = None,
    tick: Callable[[], None] | None = None,
) -> int:
    """Call a function in a process of its own, which ends when this one is killed; gives its exit code.

    Args:
        function: What to call; a function at module level.
        argument: Its argument.
        log: File that what it prints is appended to; None: it prints where this process does.
        held: Descriptor of a locked file, to be kept open by the new process as well: the lock is then free once
            both processes are gone, and not before.
        tick: Called about twice a second while the process runs.

    Raises:
        KeyboardInterrupt: Ctrl-C, or SIGTERM, that the process did not hear.
    """
    # with everything imported, which takes longer than a small test
    context = fork_server.context(["kdpl.runtime.step_imports"])
    lock = DupFd(held) if held is not None else None
    process = context.Process(target=_begin, args=(function, argument, log, lock))
    passed_on: list[int] = []
    terminate = _pass_on(process, passed_on)
    try:
        # half a process answers by a traceback
        with interrupt.held_back():
            process.start()
        while process.is_alive():
            process.join(_TICK_SECONDS if tick is not None or slurm.in_job() else None)
            if tick is not None:
                tick()
            if slurm.signalled() and process.pid is not None:
                # where Slurm told this process alone, and again: srun passes on nothing before its tasks run
                with suppress(ProcessLookupError):
                    os.kill(process.pid, slurm.SIGNAL)
    except KeyboardInterrupt:
        if process.pid is None:
            raise
        _interrupt(process)
        if process.exitcode != INTERRUPTED:
            raise
    finally:
        if terminate is not None:
            signal.signal(signal.SIGTERM, terminate)
    code = process.exitcode or 0
    if passed_on and code >= 0 and code not in ENDED_FROM_OUTSIDE:
        # a process that ends takes a moment, in which it hears nothing more
        raise Terminated
    if code in (-signal.SIGINT, -signal.SIGTERM):
        return INTERRUPTED if code == -signal.SIGINT else TERMINATED
    if code < 0:
        _say_killed(-code, log)
        return 128 - code
    return code


def _interrupt(process: BaseProcess) -> None:
    """End a process that most often heard Ctrl-C itself, ends by itself and says so."""
    begin = time.monotonic()
    alone = False
    while process.is_alive():
        try:
            process.join(None if alone else max(0.0, begin + _HEARD_SECONDS - time.monotonic()))
            if process.is_alive() and process.pid is not None:
                # somebody interrupted this process alone
                alone = True
                os.kill(process.pid, signal.SIGINT)
        except KeyboardInterrupt:
            if time.monotonic() - begin < interrupt.ECHO_SECONDS:
                continue
            # it heard this as well, and has other processes to end
            process.join(_PARTING_SECONDS)
            process.kill()
            process.join()
            raise


def _say_killed(number: int, log: Path | None) -> None:
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    memory = ", as one for which memory is short" if number == signal.SIGKILL else ""
    text = f"error: a process of this command was killed ({name}){memory}: start the same command again to go on"
    if log is None:
        print(text, file=sys.stderr)
        return
    with log.open("a", encoding="utf-8") as file:
        print(text, file=file)


def _pass_on(process: BaseProcess, passed_on: list[int]) -> Any:  # noqa: ANN401 - what signal.signal gives
    """Let SIGTERM end the other process, which then ends this one; gives the handler that was there.

    Args:
        process: The other process, which need not have been started yet.
        passed_on: Takes the number of each signal that came.
    """
    if threading.current_thread() is not threading.main_thread():
        return None

    def pass_on(number: int, _: object) -> None:
        if process.pid is None:
            raise Terminated
        passed_on.append(number)
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)

    return signal.signal(signal.SIGTERM, pass_on)


def _begin(function: Callable[[Any], None], argument: Any, log: Path | None, lock: Any) -> None:  # noqa: ANN401
    end_with_parent()
    if lock is not None:
        lock.detach()  # stays open until this process ends
    if log is not None:
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os.close(sink)
    try:
        with interrupt.whole_process():
            interrupt.hear()
            function(argument)
    except KeyboardInterrupt as error:
        # before the command could say anything better
        print(interrupt.word(error), file=sys.stderr)
        sys.exit(interrupt.exit_code(error))


def run_step(args: list[str]) -> None:
    """Run a command as a person would type it, and end the process with its exit code.

    Within a Slurm job of several tasks srun runs it, once for each.
    """
    if needs_srun() and args[0] in _OF_SEVERAL:
        # srun does not take this over by itself
        os.environ.setdefault("SRUN_CPUS_PER_TASK", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        # at Ctrl-C it would tell how its tasks are
        srun = ["srun", "--kill-on-bad-exit=1", "--quit-on-interrupt", sys.executable, "-m", "kdpl", *args]
        os.execvp(srun[0], srun)  # noqa: S606
    if needs_srun():
        # the command is that of one process, and not to be asked where the other tasks are
        os.environ.pop("SLURM_NTASKS")
    # Lightning starts the other processes of a multi-device run by the command line that it finds here
    sys.argv[1:] = args
    sys.exit(main(args))


def check_fits(commands: list[list[str]]) -> None:
    """Check the settings of fits without doing anything, and end the process with the exit code of the first wrong."""
    from kdpl.cli.fit import run_command

    def check(args: Sequence[str]) -> int:
        run_command(args, check_only=True)
        return 0

    sys.exit(next((code for args in commands if (code := call(check, args)) != 0), 0))
