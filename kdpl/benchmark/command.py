"""``python -m kdpl benchmark``: run the missing runs of a campaign."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.errors import KdplError
from kdpl.runtime.files import write_text

if TYPE_CHECKING:
    from kdpl.benchmark.tasks import Task

CAMPAIGNS = "campaigns"


def benchmark(
    campaign: str,
    *,
    out: str,
    root: str | None = None,
    datasets: list[str] = [],  # noqa: B006 - not changed
    seeds: list[int] = [],  # noqa: B006
    rows: list[str] = [],  # noqa: B006
    settings: list[str],
) -> int:
    """Run what is missing of a campaign over datasets, seeds and variants.

    Started twice, say on two GPUs, both processes share the work. All other options, such as
    --trainer.max_epochs 2, are passed on to every fit.

    Args:
        campaign: YAML file; configs/benchmark/ has examples.
        out: Folder of the campaign.
        root: Folder of all datasets.
        datasets: Some of the campaign's datasets.
        seeds: Some of the campaign's seeds.
        rows: Some of the campaign's rows; teachers that they need are fitted too.
        settings: Options for every fit.
    """
    from kdpl.benchmark import runner
    from kdpl.benchmark.campaign import read_campaign
    from kdpl.benchmark.protocols import plan

    file, folder = Path(campaign), Path(out)
    whole = read_campaign(file)
    tasks = plan(whole.choose(datasets, seeds, rows), folder, root, settings, rows)
    faults = _faults(tasks, root)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        return 1
    # the table tells from it what is missing
    write_text(folder / CAMPAIGNS / file.name, file.read_text(encoding="utf-8"))
    failures = runner.run_tasks(
        whole, tasks, folder, partial(print, flush=True), runner.in_subprocess
    )
    for task, fault in failures:
        print(f"failed: {task.name}: {fault}{f' (log: {task.log})' if task.log.is_file() else ''}")
    if not failures:
        print(
            f"all {sum(task.kind == 'test' for task in tasks)} runs are done: python -m kdpl "
            f"table {out}"
        )
    return 1 if failures else 0


def _faults(tasks: "Sequence[Task]", root: str | None) -> list[str]:
    """Return what is known to go wrong, each cause once."""
    from kdpl.benchmark.tasks import missing_data, one_of_each_kind

    missing = [task for task in tasks if not task.done()]
    faults = missing_data(missing, root)
    changed = [task for task in tasks if task.has_other_command()]
    # other commands may mean the same settings, as another number of GPUs does: fit can tell
    fits = {task.name: task for task in (*changed, *one_of_each_kind(missing))}
    faults += _invalid_settings([task.args for task in fits.values()])
    if not faults:
        for task in changed:
            task.save_command()
    return list(dict.fromkeys(faults))


def _invalid_settings(commands: Sequence[Sequence[str]]) -> list[str]:
    """Return why fits cannot be started.

    The reasons are settings that do not parse or differ from a run's, and missing weights.
    """
    from kdpl.cli.fit import run_command
    from kdpl.cli.stage_cli import Command, KdplCLI
    from kdpl.clip import ClipConfig, load_clip, load_image_clip

    faults: list[str] = []
    clips: dict[tuple[bool, ClipConfig], None] = {}

    def check(
        command: Command, args: Sequence[str], check_only: bool, at_end: ExitStack
    ) -> KdplCLI:
        cli = KdplCLI(command, args, check_only, at_end)
        model = cli.config.model
        is_student = str(model.class_path).endswith("StudentDistillation")
        clips[is_student, ClipConfig(**vars(model.init_args.clip))] = None
        return cli

    def collect(function: Callable[..., object], *args: object, **more: object) -> None:
        try:
            function(*args, **more)
        except KdplError as error:
            faults.append(str(error))

    for command in commands:
        collect(run_command, command, check_only=True, make=check)
    for is_student, clip in clips:
        collect(load_image_clip if is_student else load_clip, clip)
    return faults
