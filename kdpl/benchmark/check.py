"""Faults that are found before the first run of a campaign: missing datasets and missing files."""

from collections.abc import Iterable
from pathlib import Path

from kdpl.benchmark.tasks import FITS, Task
from kdpl.data.readers.benchmark import BENCHMARKS, Location
from kdpl.errors import DataError
from kdpl.runtime.configs import config_files


def missing_data(tasks: Iterable[Task], root: str | None) -> list[str]:
    """Describe what is missing below ``root`` of the benchmark's datasets that tasks need."""
    faults = []
    for name in dict.fromkeys(name for task in tasks for name in task.datasets):
        if root is None:
            faults.append(f"dataset {name} needs the folder of all datasets: give it as --root")
            continue
        location = Location(BENCHMARKS[name], Path(root))
        try:
            location.require_folder(location.images)
            location.read_text(location.index)
        except DataError as error:
            faults.append(str(error))
    return faults


def missing_files(tasks: Iterable[Task]) -> list[str]:
    """Describe the published files that are to be imported and do not exist."""
    files = dict.fromkeys((task.args[2], task.run.row) for task in tasks if task.kind == "import")
    return [
        f"row {row} imports {file}, which does not exist: correct 'import:' in the campaign, or get the file"
        for file, row in files
        if not Path(file).is_file()
    ]


def one_of_each_kind(tasks: Iterable[Task]) -> list[Task]:
    """Return one fit for each row and combination of configs: the others differ in dataset and seed alone."""
    kinds: dict[tuple[str, ...], Task] = {}
    for task in tasks:
        if task.kind in FITS:
            # the first config is the dataset's
            kinds.setdefault((task.run.row, *config_files(task.args)[1:]), task)
    return list(kinds.values())
