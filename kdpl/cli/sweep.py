"""``python -m kdpl sweep``: fits that differ in a few settings, one after the other, compared on validation images."""

import argparse
import csv
import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kdpl.cli.arguments import Parser
from kdpl.cli.sweep_points import Point, Sweep, as_options, read_sweep
from kdpl.errors import ConfigError
from kdpl.runtime.configs import config_files, require_configs
from kdpl.runtime.files import atomic_path
from kdpl.runtime.processes import ENDED_FROM_OUTSIDE, check_fits, in_own_process, run_step
from kdpl.runtime.run_folder import handed_over

ORDER_FILE = "sweep.json"
RESULTS_FILE = "sweep.csv"


def sweep(argv: Sequence[str]) -> int:
    """Run what is missing of a sweep, and say which settings were best.

    Args:
        argv: Arguments after ``sweep``.

    Returns:
        0, or the exit code of a fit that failed; the other fits are run nevertheless, unless it was ended from outside.

    Raises:
        ConfigError: The sweep cannot be, or its folder holds another.
        KeyboardInterrupt: Ctrl-C.
    """
    options, overrides = _parse(argv)
    out, chosen = Path(options.out), read_sweep(Path(options.sweep))
    points = chosen.points(options.count, options.seed)
    orders = _orders(chosen, overrides, options.seed)
    _require_same_orders(out, orders)
    # the fits are runs of their own in W&B, side by side in one group
    os.environ.setdefault("WANDB_RUN_GROUP", out.name)
    os.environ.pop("WANDB_RUN_ID", None)
    fits = {
        out / f"{i:03}": ["fit", *overrides, *as_options(point), f"--out={out / f'{i:03}'}"]
        for i, point in enumerate(points, start=1)
    }
    missing = [folder for folder in fits if not handed_over(folder)]
    if missing and (code := in_own_process(check_fits, [fits[folder] for folder in missing])) != 0:
        return code
    with atomic_path(out / ORDER_FILE) as temporary:
        temporary.write_text(json.dumps(orders, indent=2), encoding="utf-8")
    console, failed = Console(), 0
    for folder, point in zip(fits, points, strict=True):
        if folder not in missing:
            continue
        settings = ", ".join(f"{_short(name)} {_shown(value)}" for name, value in point.items())
        console.rule(f"[bold]{folder.name} of {len(fits)}: {settings}", align="left")
        code = in_own_process(run_step, fits[folder])
        if code in ENDED_FROM_OUTSIDE:
            return code
        failed = failed or code
    _summarize(console, chosen, dict(zip(fits, points, strict=True)), out)
    return failed


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="python -m kdpl sweep",
        allow_abbrev=False,
        description="Run fits that differ in a few settings, one after the other, and compare them on validation "
        "images. Cut off, the same command goes on where it was.",
        epilog="Any other option, such as --config FILE, is passed on to every fit.",
    )
    parser.add_argument("sweep", metavar="SWEEP", help="YAML file in W&B's format; configs/sweep/ has an example")
    parser.add_argument("--out", required=True, help="the sweep's folder; each fit has one in it")
    parser.add_argument("--count", type=_count, help="how many fits at most (default: the file's run_cap)")
    parser.add_argument("--seed", type=int, default=1, help="seed of a random sweep (default 1)")
    options, overrides = parser.parse_known_args(argv)
    require_configs(config_files(overrides))
    return options, overrides


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _orders(chosen: Sweep, overrides: list[str], seed: int) -> dict[str, Any]:
    """What decides the fits, but for their number: a longer sweep begins with the shorter one."""
    files = config_files(overrides)
    others = [arg for arg in overrides if arg not in files and arg.removeprefix("--config=") not in files]
    return {
        "method": chosen.method,
        "parameters": chosen.parameters,
        "--seed": seed,
        "--config": [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files],
        "other options": others,
    }


def _require_same_orders(out: Path, orders: dict[str, Any]) -> None:
    file = out / ORDER_FILE
    if not file.is_file():
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    different = [key for key, value in orders.items() if before.get(key) != json.loads(json.dumps(value))]
    if different:
        raise ConfigError(
            f"{out} holds a sweep with other settings ({', '.join(different)}): choose another --out, or remove that "
            "folder"
        )


def _summarize(console: Console, chosen: Sweep, fits: dict[Path, Point], out: Path) -> None:
    """Write and show the table, best first."""
    values = {folder: _value(folder, chosen.metric) for folder in fits}
    sign = -1 if chosen.goal == "maximize" else 1
    # what did not come to its end stands last
    ranked = sorted(fits, key=lambda folder: (math.isnan(values[folder]), sign * values[folder]))
    with atomic_path(out / RESULTS_FILE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *chosen.parameters, chosen.metric])
        writer.writerows([f.name, *fits[f].values(), "" if math.isnan(values[f]) else values[f]] for f in ranked)
    table = Table(title=f"{chosen.metric} at the end of each fit", title_justify="left")
    for column in ("run", *map(_short, chosen.parameters), chosen.metric):
        table.add_column(column, justify="right")
    for folder in ranked:
        value = values[folder]
        shown = "none" if math.isnan(value) else f"{value:.4f}"
        table.add_row(folder.name, *map(_shown, fits[folder].values()), shown)
    console.print(table)
    console.print(f"table    {out / RESULTS_FILE}", soft_wrap=True)
    if not math.isnan(values[ranked[0]]):
        console.print(f"test it: python -m kdpl test --config {ranked[0] / 'config.yaml'}", soft_wrap=True)
    elif any(map(handed_over, fits)):
        raise ConfigError(
            f"no fit of the sweep logged {chosen.metric}: correct the metric's name in {chosen.file}, or give the data "
            "validation images"
        )


def _value(folder: Path, metric: str) -> float:
    """The metric's last value of a finished fit, since the last epoch's model is its result."""
    from kdpl.runtime.loggers import METRICS_FILE, read_metrics

    if not handed_over(folder) or not (folder / METRICS_FILE).is_file():
        return math.nan
    curve = read_metrics(folder / METRICS_FILE).get(metric)
    return curve[-1][1] if curve else math.nan


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _shown(value: Any) -> str:  # noqa: ANN401
    return f"{value:.4g}" if isinstance(value, float) else str(value)
