"""What can be known to go wrong before the first run of a campaign: settings, datasets, weights."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdpl.benchmark.tasks import FITS, Task
from kdpl.data.readers.benchmark import BENCHMARKS, Location
from kdpl.errors import DataError, KdplError
from kdpl.runtime.configs import config_files


def missing_data(datasets: Iterable[str], root: str | None) -> list[str]:
    """Say of each dataset of the benchmark that is not on disk what is missing.

    Args:
        datasets: Names of datasets.
        root: The folder of all datasets.
    """
    faults = []
    for name in datasets:
        if name not in BENCHMARKS:
            continue
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
    """Say which published files are not there of those that are to be imported."""
    files = dict.fromkeys((task.args[2], task.run.row) for task in tasks if task.kind == "import")
    return [
        f"row {row} imports {file}, which does not exist: correct 'import:' in the campaign, or get the file"
        for file, row in files
        if not Path(file).is_file()
    ]


def one_of_each_kind(tasks: Iterable[Task]) -> list[Task]:
    """Give one fit for each row and combination of configs: the others differ in dataset and seed alone."""
    kinds: dict[tuple[str, ...], Task] = {}
    for task in tasks:
        if task.kind in FITS:
            # the first config is the dataset's
            kinds.setdefault((task.run.row, *config_files(task.args)[1:]), task)
    return list(kinds.values())


def check_fits_and_weights(commands: list[list[str]]) -> None:
    """Check the settings of fits and that their CLIPs can be had, and end the process with 1 if any is wrong.

    Each cause is printed once. Called in a process of its own.
    """
    from kdpl.cli.fit import KdplCLI, run_command
    from kdpl.clip import ClipConfig, load_clip, load_image_clip

    faults: dict[str, None] = {}
    clips: dict[tuple[bool, ClipConfig], None] = {}

    def check(args: Sequence[str], check_only: bool) -> None:
        model = KdplCLI(args, check_only).config["fit"].model
        clips[str(model.class_path).endswith("StudentDistillation"), ClipConfig(**vars(model.init_args.clip))] = None

    for args in commands:
        try:
            run_command(args, check_only=True, make=check)
        except KdplError as error:
            faults[str(error)] = None
    for student, clip in clips:
        try:
            (load_image_clip if student else load_clip)(clip)
        except KdplError as error:
            faults[str(error)] = None
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


def as_fit(task: Task) -> list[str]:
    """Give a fit's command, also of an import, which takes the same settings after what it imports."""
    return ["fit", *task.args[3:]] if task.kind == "import" else list(task.args)
