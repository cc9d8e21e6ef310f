"""The commands of ``python -m kdpl``, one file each; none is imported before it is called.

Each returns its exit code, and raises a ``KdplError`` for what the user can fix.
"""

from collections.abc import Callable
from pkgutil import resolve_name

STAGES = ("fit", "validate", "test")
"""The commands of LightningCLI, which parse their arguments by themselves."""

COMMANDS = {
    "init": ("init:init", "look at a folder of images of your own, and write a config for it"),
    "models": ("models:models", "the CLIPs that can be teacher or student: prompts, size, licence"),
    "run": ("run:run", "both stages on your data: tune the teacher, distil the student, test, write the classifier"),
    "fit": ("fit:run_command", "one stage: train what --config says into the folder --out"),
    "validate": ("fit:run_command", "accuracies of a run on the validation split"),
    "test": ("fit:run_command", "accuracies, predictions and pictures of a run on the test split"),
    "predict": ("predict:predict", "classify images with a finished classifier"),
    "calibrate": (
        "calibrate:calibrate",
        "score labelled images that a classifier was not trained on, for predict to know when it is unsure",
    ),
    "demo": ("demo:demo", "a page in the browser that classifies the images dropped on it"),
    "serve": ("serve:serve", "a service that classifies the images that other programs send over HTTP"),
    "cache": ("cache:cache", "the teacher's image features of all views, computed once for any number of students"),
    "refine": (
        "refine:refine",
        "refined targets for a student: if they are taken and why, and what changes for each class",
    ),
    "export": (
        "export:export",
        "write a finished classifier for ONNX, OpenVINO, ExecuTorch or torch.export, and check it",
    ),
    "class-vectors": ("class_vectors:class_vectors", "class vectors of other class names, from a tuned teacher"),
    "benchmark": ("benchmark:benchmark", "run what is missing of a campaign over datasets, seeds and variants"),
    "table": ("table:table", "the tables of a campaign, beside published figures"),
    "suggest": ("suggest:suggest", "the images to label next, and the labels that look wrong"),
    "report": (
        "report:report",
        "what was trained and how well, in one HTML file; or if new images are like the pool",
    ),
    "compare": ("compare:compare", "runs side by side: which one is better, and is it more than chance"),
    "data": ("data:data", "download a dataset of the benchmark, or check that a dataset is intact"),
    "import": ("import_:import_", "import a teacher or student that PromptKD's authors published into a run's folder"),
    "completion": ("completion:completion", "print a script that completes commands and options in bash, zsh or tcsh"),
}
"""Where each command is in this package, and its line in the usage text."""


def find_command(name: str) -> Callable[..., int]:
    """Import a command."""
    function: Callable[..., int] = resolve_name(f"kdpl.cli.{COMMANDS[name][0]}")
    return function


USAGE = f"""\
usage: python -m kdpl COMMAND …

{"".join(f"  {name:<15}{line}{chr(10)}" for name, (_, line) in COMMANDS.items())}
  --version      the version
  --debug        with any command: show the traceback of an error

python -m kdpl COMMAND --help tells more.
"""
