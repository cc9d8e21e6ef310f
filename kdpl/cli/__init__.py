"""The commands of ``python -m kdpl``, imported when called, and what they share.

A command returns its exit code, and raises a ``KdplError`` for what the user can fix. Plugins add
further commands.
"""

from collections.abc import Callable
from itertools import chain
from pkgutil import resolve_name

from kdpl.runtime import plugins

STAGES = ("fit", "validate", "test")
"""Commands of LightningCLI that parse their arguments themselves."""

COMMANDS = {
    "run": "from a folder of images to a classifier: choose, tune the teacher, distil the student, "
    "test",
    "fit": "one stage: train what --config says into the folder --out",
    "validate": "accuracies of a run on the validation split",
    "test": "accuracies and predictions of a run on the test split",
    "predict": "classify images with a finished classifier",
    "export": "write a finished classifier as a file that runs without kdpl, and check it",
    "init": "survey your images and write a config for them",
    "search": "choose what of a student is trained, by short fits that are compared without labels",
    "cache": "compute the teacher's features of views of unlabelled images, for a student's fit to "
    "read",
    "class-vectors": "encode class names, for classes to add; nothing is trained",
    "models": "list the CLIPs that can be teacher or student: prompts, size, licence",
}
"""Line of each core command in the usage text; its file here has a function of its name."""


_GROUPS = {
    "first": ("run", "predict", "estimate"),
    "train": ("init", "fit", "validate", "test", "search", "cache"),
    "use": ("export", "class-vectors", "serve"),
    "understand": ("report", "compare", "calibrate", "models"),
    "data": ("data", "suggest"),
    "benchmark": ("benchmark", "table"),
}
"""Commands in the order of the usage text, where they are installed; others are listed last."""


def command_names() -> list[str]:
    """Return the names of all commands, core commands first."""
    return [*COMMANDS, *plugins.paths("commands")]


def find_command(name: str) -> Callable[..., int]:
    """Import a command; KeyError if the name is unknown."""
    module = name.replace("-", "_")
    of_core = "fit:run_command" if name in STAGES else f"{module}:{module}"
    path = f"kdpl.cli.{of_core}" if name in COMMANDS else plugins.paths("commands")[name]
    function: Callable[..., int] = resolve_name(path)
    return function


def usage() -> str:
    """Return the usage text; the line of a plugin's command is the first of its docstring."""
    lines = dict(COMMANDS)
    for name, function in plugins.load_all("commands").items():
        line = (function.__doc__ or "").partition("\n")[0].rstrip(".")
        lines[name] = line[:1].lower() + line[1:]
    listed = [*chain(*_GROUPS.values())]
    groups = {**_GROUPS, "further": [name for name in lines if name not in listed]}
    blocks = []
    for title, names in groups.items():
        rows = [f"  {name:<15}{lines[name]}\n" for name in names if name in lines]
        if rows:
            blocks.append(f"{title}:\n{''.join(rows)}")
    return f"""\
usage: python -m kdpl COMMAND …

{chr(10).join(blocks)}
  --version      the version
  --debug        with any command: show the traceback of an error

python -m kdpl COMMAND --help tells more.
"""
