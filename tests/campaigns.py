"""Campaigns on miniature benchmarks with the miniature CLIPs, started as a person starts them."""

import subprocess
from pathlib import Path

from benchmark_tree import make_tree
from runs import start_process

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
FEW = [
    "--data.init_args.shots=1",
    "--data.init_args.num_workers=0",
    "--trainer.max_epochs",
    "1",
    "--trainer.check_val_every_n_epoch=1",
]


def make_trees(root):
    """Write miniatures of the datasets of these campaigns; gives ROOT."""
    for name in ("dtd", "oxford_pets", "imagenet", "imagenet_a"):
        make_tree(name, root)
    return root


def written(folder, text, rows=ROWS):
    """Write a campaign's file."""
    file = folder / "mine.yaml"
    file.write_text(text + rows)
    return file


def started(*args):
    """The command in a process of its own."""
    return start_process(["benchmark", *args], stdout=subprocess.PIPE)
