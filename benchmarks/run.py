"""``python -m benchmarks.run``: run the comparisons, and print and save the results."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import machine
from benchmarks.rows import GROUPS, Bench, Row
from benchmarks.settings import add_options, settings_of
from kdpl.runtime.files import atomic_path
from kdpl.runtime.messages import quiet_libraries


def main(argv: Sequence[str] | None = None) -> int:
    """Run the selected comparisons; returns 0 even if targets are missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description="Run the comparisons, and print and save the results.",
    )
    parser.add_argument(
        "--only", action="append", choices=list(GROUPS), help="may be repeated; default: all"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON file for all measurements"
    )
    add_options(parser)
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU: omit --device")
    settings = settings_of(options)
    settings.prepare()
    quiet_libraries()
    bench = Bench(settings)
    console = Console()
    began = machine(settings.torch_device)
    rows: list[Row] = []
    for name, group in GROUPS.items():
        if options.only and name not in options.only:
            continue
        start = time.monotonic()
        rows += group(bench)
        Console(stderr=True).print(f"{name}: {time.monotonic() - start:.0f} s")
        # save after each, because all of them take half an hour
        report = {
            "machine": began,
            "load_average_after": list(os.getloadavg()),
            "matrix_product_flops_per_s": bench.rate,
            "settings": asdict(settings),
            "rows": [{**asdict(row), "met": _met(row)} for row in rows],
        }
        with atomic_path(options.out) as temporary:
            temporary.write_text(json.dumps(report, indent=2), encoding="utf-8")
    console.print(_table(rows))
    console.print(f"matrix product: {bench.rate / 1e9:.0f} GFLOP/s; all numbers: {options.out}")
    return 0


def _table(rows: Sequence[Row]) -> Table:
    table = Table()
    table.add_column("comparison")
    for title in ("measured", "target", "sides"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        target = (
            ""
            if _met(row) is None
            else f"≥ {row.at_least:g}"
            if row.at_least is not None
            else f"≤ {row.at_most:.3g}"
        )
        mark = {True: "green", False: "red", None: "default"}[_met(row)]
        table.add_row(row.name, f"[{mark}]{_value(row)}[/]", target, _sides(row))
    return table


def _value(row: Row) -> str:
    number = (
        f"{row.value:.1e}"
        if row.unit == ""
        else f"{row.value:.3g}"
        if row.value < 1000
        else f"{row.value:,.0f}"
    )
    return f"{number} {row.unit}".strip()


def _sides(row: Row) -> str:
    texts = []
    for side in row.details.values():
        if isinstance(side, dict) and "median_s" in side:
            texts.append(f"{side['median_s']:.3g} s")
        elif isinstance(side, dict):
            texts.append(f"{side['peak'] / 1e9:.2f} GB")
    return " / ".join(texts)


def _met(row: Row) -> bool | None:
    if row.at_least is not None:
        return row.value >= row.at_least
    return row.value <= row.at_most if row.at_most is not None else None


if __name__ == "__main__":
    raise SystemExit(main())
