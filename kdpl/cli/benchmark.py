"""``python -m kdpl benchmark``: run what is missing of a campaign."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kdpl.benchmark.campaign import Campaign, read_campaign
from kdpl.benchmark.check import as_fit, check_fits_and_weights, missing_data, missing_files, one_of_each_kind
from kdpl.benchmark.display import display
from kdpl.benchmark.orders import save_orders, with_other_orders
from kdpl.benchmark.protocols import Place, plan
from kdpl.benchmark.runner import Failure, run_tasks
from kdpl.benchmark.slurm import DEFAULT_OPTIONS, write_slurm
from kdpl.benchmark.tasks import Task
from kdpl.cli.arguments import Parser
from kdpl.errors import ConfigError
from kdpl.runtime.files import atomic_path
from kdpl.runtime.processes import check_fits, in_own_process

CAMPAIGNS = "campaigns"


def benchmark(argv: Sequence[str]) -> int:
    """Run what is missing of a campaign, or write job files for it.

    Args:
        argv: Arguments after ``benchmark``.

    Returns:
        0, or 1 where something is missing, wrong or failed.

    Raises:
        ConfigError: The campaign cannot be, or what is asked for is not in it.
        KeyboardInterrupt: Ctrl-C.
    """
    options, overrides = _parser().parse_known_args(argv)
    out = Path(options.out)
    file = Path(options.campaign)
    campaign = read_campaign(file)
    chosen = campaign.choose(options.datasets, options.seeds, options.rows)
    tasks = plan(chosen, Place(out, options.root, tuple(overrides)), options.rows)
    if options.only is not None:
        tasks = _only(tasks, options.only)
    code = _check(tasks, options.root)
    if code != 0:
        return code
    _keep_campaign(file, campaign, out)
    if options.slurm:
        return _slurm(tasks, out, options, overrides)
    return _run(campaign, tasks, out)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m kdpl benchmark",
        allow_abbrev=False,
        description="Run what is missing of a campaign. Start it twice, on two GPUs say, and both share the work.",
        epilog="Any other option, such as --trainer.max_epochs 2, is passed on to every fit.",
    )
    parser.add_argument("campaign", metavar="CAMPAIGN", help="YAML file; configs/benchmark/ has examples")
    parser.add_argument("--out", required=True, help="the campaign's folder")
    parser.add_argument("--root", help="the folder of all datasets")
    parser.add_argument("--datasets", nargs="+", help="some of the campaign's datasets")
    parser.add_argument("--seeds", type=int, nargs="+", help="some of the campaign's seeds")
    parser.add_argument("--rows", nargs="+", help="some of the campaign's rows, and the teachers that they need")
    parser.add_argument("--only", metavar="TASK", help="one task or run: its folder below --out")
    parser.add_argument("--slurm", action="store_true", help="run nothing: write array jobs into the folder slurm/")
    parser.add_argument(
        "--sbatch",
        action="append",
        metavar="OPTION",
        help=f"with --slurm: options of sbatch, as in --sbatch=--time=8:00:00 (default {' '.join(DEFAULT_OPTIONS)})",
    )
    return parser


def _only(tasks: list[Task], name: str) -> list[Task]:
    chosen = [task for task in tasks if f"{task.name}/".startswith(f"{name.rstrip('/')}/")]
    if not chosen:
        raise ConfigError(f"--only {name} is no task of the campaign: give one such as {tasks[0].run.name}")
    return chosen


def _check(tasks: list[Task], root: str | None) -> int:
    """Say what is known to go wrong, each cause once; gives the exit code, 0 if nothing is."""
    missing = [task for task in tasks if not task.done()]
    datasets = dict.fromkeys(name for task in missing for name in task.datasets)
    faults = [*missing_data(datasets, root), *missing_files(missing)]
    changed = with_other_orders(tasks)
    # an import leaves settings aside that fit would compare
    faults += [
        f"{task.folder} was imported from another file or with other settings: choose another --out, or remove it"
        for task in changed
        if task.kind == "import"
    ]
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    changed = [task for task in changed if task.kind == "fit"]
    if changed:
        # other words may mean the same settings, as another number of GPUs does: fit knows
        code = in_own_process(check_fits, [as_fit(task) for task in changed])
        if code != 0:
            return code
        for task in changed:
            save_orders(task)
    fits = one_of_each_kind(missing)
    code = in_own_process(check_fits_and_weights, [as_fit(task) for task in fits]) if fits else 0
    return code or int(bool(faults))


def _keep_campaign(file: Path, campaign: Campaign, out: Path) -> None:
    """Keep the campaign in its folder, whose table says by it what is still missing."""
    text = file.read_text(encoding="utf-8")
    copy = out / CAMPAIGNS / f"{campaign.name}.yaml"
    if not copy.is_file() or copy.read_text(encoding="utf-8") != text:
        with atomic_path(copy) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _slurm(tasks: list[Task], out: Path, options: argparse.Namespace, overrides: list[str]) -> int:
    command = ["benchmark", options.campaign, f"--out={options.out}"]
    command += [f"--root={options.root}"] if options.root is not None else []
    submit = write_slurm(tasks, out, [*command, *overrides], options.sbatch or DEFAULT_OPTIONS)
    print(f"look through {submit.parent}/level_*.sbatch, then submit them all: bash {submit}")
    return 0


def _run(campaign: Campaign, tasks: list[Task], out: Path) -> int:
    console = Console()
    tests = [task for task in tasks if task.kind == "test"]
    with display(console, total=len(tests), done=sum(task.done() for task in tests)) as shown:
        failures = run_tasks(campaign, tasks, out, shown)
    _report(console, failures)
    if failures:
        return 1
    console.print(f"all {len(tests)} runs are done: python -m kdpl table {out}", soft_wrap=True, highlight=False)
    return 0


def _report(console: Console, failures: list[Failure]) -> None:
    for failure in failures:
        log = f" (log: {failure.task.log})" if failure.task.log.is_file() else ""
        line = f"failed: {failure.task.name}: {failure.fault}{log}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
