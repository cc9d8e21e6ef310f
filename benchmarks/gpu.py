"""``python -m benchmarks.gpu``: all comparisons that a GPU changes, in one table."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.report import Report
from benchmarks.settings import Settings
from kdpl.runtime.messages import quiet_libraries

# peak memory comes first, when nothing else is in the GPU's memory
_STEPS = ("distillation", "student", "tuning", "texts")
_MEMORY = ("memory", "stage-1", "stage-2")
PARTS = (
    ("32-true", 8, (*_MEMORY, *_STEPS, "many-classes", "memory-formats", "inference")),
    ("bf16-mixed", 8, (*_MEMORY, *_STEPS, "many-classes", "bf16", "memory-formats")),
    ("bf16-mixed", 64, ("stage-1", "stage-2", *_STEPS, "networks", "memory-formats", "compile")),
    ("32-true", 64, ("networks",)),
)
"""Precision, batch size (8 is the published one), and groups of comparisons."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run them and print the table; returns 1 without a GPU, and 0 even if rows have failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Run the comparisons that a GPU changes, and print and save one table.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: for tests")
    parser.add_argument("--small", action="store_true", help="miniature models, for tests")
    parser.add_argument("--repeats", type=int, default=20, help="rounds for medians (default 20)")
    parser.add_argument(
        "--minutes", type=float, default=50, help="begin no comparison afterwards (default 50)"
    )
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"PyTorch {torch.__version__} finds no GPU: this needs one of NVIDIA, and a build of "
            "PyTorch for CUDA",
            file=sys.stderr,
        )
        return 1
    quiet_libraries()
    until = time.monotonic() + 60 * options.minutes
    report = Report(options.out, torch.device(options.device))
    for precision, batch_size, groups in PARTS:
        settings = Settings(
            options.small,
            options.device,
            precision,
            batch_size,
            options.repeats,
            threads=os.cpu_count() or 1,
        )
        settings.prepare()
        report.run(settings, groups, until)
    print(report.markdown())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
