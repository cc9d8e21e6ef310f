"""Campaigns on miniature benchmarks with the miniature CLIPs."""

import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import yaml
from benchmark_tree import make_tree
from runs import start_process

from kdpl.__main__ import main
from kdpl.benchmark.campaign import parse_campaign

ROOT = Path(__file__).parents[1]
ROWS = """
configs: [configs/trainer/cpu.yaml]
rows:
  teacher: {title: "teacher, tuned", teacher: configs/teacher/quickstart.yaml}
  student: {title: "**student, distilled**", student: configs/student/quickstart.yaml, of: teacher, published: promptkd}
"""
BASE_TO_NOVEL = "protocols: [base_to_novel]\ndatasets: [dtd, oxford_pets]\nseeds: [1, 2]\n"
SOURCE = """
protocols: [cross_dataset, domain_generalization]
source: imagenet
datasets: [dtd]
variants: [imagenet_a]
"""
FEW = ["--data.init_args.shots=1", "--data.init_args.num_workers=0", "--trainer.max_epochs", "1"]
FEW += ["--trainer.check_val_every_n_epoch=1"]


def make_trees(root):
    """Write miniatures of the datasets of these campaigns; returns ROOT."""
    for name in ("dtd", "oxford_pets", "imagenet", "imagenet_a"):
        make_tree(name, root)
    return root


def campaign(text="", **changes):
    """A campaign of the text of its file, with the rows above and changes."""
    return parse_campaign(
        {**yaml.safe_load(ROWS), **(yaml.safe_load(text) or {}), **changes}, Path("mine.yaml")
    )


def written(folder, text, rows=ROWS):
    file = folder / "mine.yaml"
    file.write_text(text + rows)
    return file


def in_this_process(args, log):
    """Run a command of a campaign in the process of the test."""
    with log.open("a") as output, redirect_stdout(output), redirect_stderr(output):
        return main(list(args))


def started(*args):
    """The command in a process of its own."""
    return start_process(["benchmark", *map(str, args)], stdout=subprocess.PIPE)
