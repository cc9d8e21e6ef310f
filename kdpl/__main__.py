"""``python -m kdpl``: one door to everything, which imports only what the command needs."""

import codecs
import inspect
import locale
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pkgutil import resolve_name

from kdpl import __version__
from kdpl.cli import arguments
from kdpl.runtime import interrupt, slurm
from kdpl.runtime.faults import reader_is_gone, sentence
from kdpl.runtime.imports import uncollected

USAGE = """\
usage: python -m kdpl COMMAND …

  init           look at a folder of images of your own, and write a config for it
  run            both stages on your data: tune the teacher, freeze class vectors, distil the student, test, classifier
  fit            one stage: train what --config says into the folder --out
  validate       accuracies of a run on the validation split
  test           accuracies, answers and pictures of a run on the test split
  predict        classify images with a finished classifier
  demo           a page in the browser that classifies the images dropped on it
  cache          the teacher's image features of all views, computed once for any number of students
  export         write a finished classifier as ONNX or a torch.export program, and check it
  class-vectors  class vectors of other class names, from a teacher that is tuned already
  sweep          fits that differ in a few settings, compared on validation images
  benchmark      run what is missing of a campaign over datasets, seeds and variants
  table          make the tables of a campaign, beside published figures
  report         what was trained and how well, in one HTML file
  data           get a dataset of the benchmark, or see that a dataset is whole
  import         take a teacher or student that PromptKD's authors published over into a run's folder

  --version      the version
  --debug        with any command: show the traceback of an error

python -m kdpl COMMAND --help tells more.
"""


# as a shell gives it for a command that SIGPIPE ended
_PIPE_CLOSED = 141

# imported when they are asked for: most of them need torch, which takes seconds
_COMMANDS = {
    "init": "kdpl.cli.init:init",
    "run": "kdpl.cli.run:run",
    "fit": "kdpl.cli.fit:run_command",
    "validate": "kdpl.cli.fit:run_command",
    "test": "kdpl.cli.fit:run_command",
    "predict": "kdpl.cli.predict:predict",
    "demo": "kdpl.cli.demo:demo",
    "cache": "kdpl.cli.cache:cache",
    "export": "kdpl.cli.export:export",
    "class-vectors": "kdpl.cli.class_vectors:class_vectors",
    "sweep": "kdpl.cli.sweep:sweep",
    "benchmark": "kdpl.cli.benchmark:benchmark",
    "table": "kdpl.cli.table:table",
    "report": "kdpl.cli.report:report",
    "data": "kdpl.cli.data:data",
    "import": "kdpl.cli.import_:import_",
}


def _run_command(args: Sequence[str]) -> int:
    name = args[0]
    if slurm.in_job():
        # before anything is imported that starts threads: they would hear it
        slurm.listen()
    with interrupt.ends_at_once(), uncollected() if interrupt.in_whole_process() else nullcontext():
        interrupt.hear()
        function = resolve_name(_COMMANDS[name])
    if next(iter(inspect.signature(function).parameters)) not in ("argv", "args"):
        return arguments.call(function, args[1:], f"python -m kdpl {name}")
    # LightningCLI takes its own subcommands by name
    code: int | None = function(args if name in ("fit", "validate", "test") else args[1:])
    return code or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        The exit code: 0, 1 for an error that the user can mend, 2 for a command that does not exist, 75 for a Slurm
        job that is in the queue again, 130 for Ctrl-C, 141 where nobody reads what is printed, 143 for SIGTERM; of a
        step in a process of its own that was killed, 128 and the signal's number.
    """
    if argv is None:
        _require_utf8()
        try:
            with interrupt.whole_process():
                return main(sys.argv[1:])
        except KeyboardInterrupt as error:
            # as the command had just come to its end
            if "--debug" in sys.argv:
                raise
            return interrupt.exit_code(error)
    args = list(argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if args[0] == "--version":
        print(f"kdpl {__version__}")
        return 0
    if args[0] not in _COMMANDS:
        print(f"error: there is no command {args[0]!r}: use one of {', '.join(_COMMANDS)}", file=sys.stderr)
        return 2
    return call(_run_command, args, debug)


def _require_utf8() -> None:
    """Begin anew in Python's UTF-8 mode under a locale of another encoding.

    Libraries read and write text in the locale's encoding, and so would refuse configs or names with umlauts.
    """
    encodings = {codecs.lookup(name).name for name in (locale.getpreferredencoding(False), sys.getfilesystemencoding())}
    if encodings != {"utf-8"} and os.environ.get("PYTHONUTF8") != "1":
        # by the environment, which the processes that this one starts inherit
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})  # noqa: S606


def call(command: Callable[[Sequence[str]], int], args: Sequence[str], debug: bool = False) -> int:
    """Call a command and turn what its user can mend into one line and an exit code.

    Args:
        command: What to call.
        args: Its arguments.
        debug: Raise errors as they are.
    """
    try:
        return command(args)
    except slurm.Requeued as requeued:
        print(requeued, file=sys.stderr)
        return requeued.exit_code
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            return _PIPE_CLOSED
        said = None if debug else sentence(error)
        if said is None:
            raise
        if not isinstance(error, KeyboardInterrupt):
            print(f"error: {said}", file=sys.stderr)
            return 1
        if interrupt.speaks():
            print(said, file=sys.stderr)
        return interrupt.exit_code(error)


if __name__ == "__main__":
    sys.exit(main())
