"""``python -m kdpl``: dispatch commands; each is imported only when called."""

import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence

from kdpl import __version__
from kdpl.cli import COMMANDS, STAGES, USAGE, find_command
from kdpl.runtime import faults

# exit codes of a shell for Ctrl-C, SIGPIPE and SIGTERM
_INTERRUPTED, _PIPE_CLOSED, _TERMINATED = 130, 141, 143
_STARTER = "KDPL_STARTER"  # variable of the environment


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns the exit code: 0; 1 for an error that the user can fix; 2 for an unknown command; 75
    for a requeued Slurm job; 130 for Ctrl-C; 141 if nothing reads the output; 143 for SIGTERM.
    """
    # signals, only if this process is the command
    if argv is None:
        signal.signal(signal.SIGTERM, _terminate)
        if "SLURM_JOB_ID" in os.environ:
            # stays pending until Preemption looks, and ends no child, which inherit this
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        _end_with_first()
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    # run the command, and turn errors into messages and exit codes
    try:
        return _run(args)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and not _is_read(sys.stdout.fileno()):
            # such as in a pipe to head; Python would report it again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _PIPE_CLOSED
        cause = faults.interruption(error)
        message = None if debug else faults.sentence(cause)
        if isinstance(cause, KeyboardInterrupt):
            if message is None:
                traceback.print_exception(error)
            elif _is_first():  # of a training, only this process prints it
                print(message, file=sys.stderr)
            return _TERMINATED if isinstance(cause, faults.Terminated) else _INTERRUPTED
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    finally:
        if argv is None:
            # this process is about to end, but a job manager may send the signal again
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _terminate(*_: object) -> None:
    raise faults.Terminated


def _end_with_first() -> None:
    """Let processes that the first one of a training started end within a second of it.

    They would otherwise look for a first one that was killed for minutes.
    """
    if _is_first():
        os.environ[_STARTER] = str(os.getpid())
        return

    def watch(starter: int) -> None:
        while os.getppid() == starter:
            time.sleep(1)
        os._exit(1)

    # torchrun, Slurm or a person may have started it instead
    if _STARTER in os.environ:
        threading.Thread(target=watch, args=[int(os.environ[_STARTER])], daemon=True).start()


def _is_first() -> bool:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def _is_read(file: int) -> bool:
    """Return whether an open file has a reader; another pipe may be the broken one."""
    watch = select.poll()
    watch.register(file, select.POLLOUT)
    return not any(event & select.POLLERR for _, event in watch.poll(0))


def _run(args: list[str]) -> int:
    from kdpl.cli import arguments

    # options of the program itself
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if args[0] == "--version":
        print(f"kdpl {__version__}")
        return 0
    if args[0] not in COMMANDS:
        problem = f"there is no command {args[0]!r}"
        print(f"error: {problem}: use one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    function = find_command(args[0])
    if args[0] in STAGES:
        return function(args)
    return arguments.call(function, args[1:], f"python -m kdpl {args[0]}")


if __name__ == "__main__":
    sys.exit(main())
