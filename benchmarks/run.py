"""``python -m benchmarks.run``: run the comparisons, and print and save the results."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.report import Report
from benchmarks.rows import GROUPS, ON_A_GPU
from benchmarks.settings import add_options, settings_of
from kdpl.runtime.messages import quiet_libraries


def main(argv: Sequence[str] | None = None) -> int:
    """Run the selected comparisons; returns 0 even if targets are missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description="Run the comparisons, and print and save the results.",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=list(GROUPS),
        help="may be repeated; default: all but those for GPUs",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON file for all measurements; the table is written beside it as Markdown",
    )
    add_options(parser)
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU: omit --device")
    settings = settings_of(options)
    settings.prepare()
    quiet_libraries()
    report = Report(options.out, settings.torch_device)
    report.run(settings, options.only or [name for name in GROUPS if name not in ON_A_GPU])
    print(report.markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
