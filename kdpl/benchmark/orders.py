"""What each fit of a campaign was asked to do, so that a changed campaign does not mix runs of different settings."""

import json
from collections.abc import Iterable
from pathlib import Path

import yaml

from kdpl.benchmark.tasks import FITS, Task
from kdpl.runtime.configs import config_files
from kdpl.runtime.files import atomic_path

_FILE = "orders.json"


def orders(task: Task) -> str:
    """Give what a fit is asked to do, the contents of its config files included."""
    contents = {file: yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in config_files(task.args)}
    return json.dumps({"args": list(task.args), "configs": contents}, indent=2, default=str)


def save_orders(task: Task) -> None:
    """Write down what a fit is asked to do, in its folder."""
    with atomic_path(task.folder / _FILE) as temporary:
        temporary.write_text(orders(task), encoding="utf-8")


def with_other_orders(tasks: Iterable[Task]) -> list[Task]:
    """Give the fits that were begun on other orders; whether their settings differ, ``fit`` itself can tell."""
    return [task for task in tasks if task.kind in FITS and _begun_otherwise(task)]


def _begun_otherwise(task: Task) -> bool:
    file = task.folder / _FILE
    return file.is_file() and file.read_text(encoding="utf-8") != orders(task)
