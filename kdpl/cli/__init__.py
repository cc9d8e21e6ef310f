"""The commands of ``python -m kdpl``, imported when called.

A command returns its exit code, and raises a ``KdplError`` for what the user can fix.
"""

from collections.abc import Callable
from pkgutil import resolve_name

STAGES = ("fit", "validate", "test")
"""Commands of LightningCLI that parse their arguments themselves."""

COMMANDS = {
    "run": "kdpl.cli.run:run",
    "predict": "kdpl.cli.predict:predict",
    "estimate": "kdpl.report.command:estimate",
    "init": "kdpl.cli.init:init",
    **dict.fromkeys(STAGES, "kdpl.cli.fit:run_command"),
    "export": "kdpl.cli.export:export",
    "class-vectors": "kdpl.cli.class_vectors:class_vectors",
    "serve": "kdpl.serve.command:serve",
    "report": "kdpl.report.command:report",
    "compare": "kdpl.report.command:compare",
    "calibrate": "kdpl.confidence.command:calibrate",
    "models": "kdpl.cli.models:models",
    "data": "kdpl.benchmark.data_command:data",
    "suggest": "kdpl.report.command:suggest",
    "benchmark": "kdpl.benchmark.command:benchmark",
    "table": "kdpl.benchmark.command:table",
}
"""Functions of the commands, as dotted paths."""

USAGE = """\
usage: python -m kdpl COMMAND …

first:
  run            from a folder of images to a classifier: choose, tune, distil, test
  predict        classify images with a finished classifier
  estimate       estimate what run PATH will be worth, before anything is trained

train:
  init           survey your images and write a config for them
  fit            one stage: train what --config says into the folder --out
  validate       accuracies of a run on the validation split
  test           accuracies and predictions of a run on the test split

use:
  export         write a classifier as a file that runs without kdpl, and check it
  class-vectors  encode class names, for classes to add
  serve          classify the images that other programs send over HTTP

understand:
  report         write report.html: what was trained and how well, in one file
  compare        compare the test accuracies of runs with the first run
  calibrate      score labelled images that a classifier was not trained on
  models         list the CLIPs that can be teacher or student: prompts, size, licence

data:
  data           download a benchmark dataset, or count its classes and decode every image
  suggest        choose the images to label next, and labels that look wrong

benchmark:
  benchmark      do the missing runs of a campaign over datasets, seeds and variants
  table          print the tables of a campaign, next to published figures

  --version      the version
  --debug        with any command: show the traceback of an error

python -m kdpl COMMAND --help tells more.
"""


def find_command(name: str) -> Callable[..., int]:
    """Import a command; KeyError if the name is unknown."""
    function: Callable[..., int] = resolve_name(COMMANDS[name])
    return function
