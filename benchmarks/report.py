"""The rows of comparisons, saved after each as JSON and as a Markdown table beside it."""

import gc
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.measuring import machine
from benchmarks.rows import GROUPS, Bench, Row, failed
from benchmarks.settings import Settings
from kdpl.runtime.files import write_text

_HEADER = (
    "| comparison | precision | batch | measured | target | sides |\n|---|---|--:|--:|--:|--:|"
)


class Report:
    """Runs comparisons and keeps their rows.

    Args:
        out: JSON file for all measurements; the table is written beside it, with the ending ``.md``.
        device: The device.
    """

    def __init__(self, out: Path, device: torch.device) -> None:
        self.out = out
        self.machine = machine(device)
        self.rows: list[tuple[Settings, Row]] = []
        self.rates: dict[str, float] = {}

    def run(self, settings: Settings, groups: Iterable[str], until: float = float("inf")) -> None:
        """Run groups of comparisons; one that fails, or is not begun by ``until``, becomes a row that says so.

        Args:
            settings: Settings of the comparisons.
            groups: Keys of ``GROUPS``.
            until: Time of ``time.monotonic()``.
        """
        bench = Bench(settings)
        for name in groups:
            start = time.monotonic()
            if start > until:
                rows = [Row(name, failure="not measured: the time is over")]
            else:
                try:
                    rows = GROUPS[name](bench)
                    self.rates[settings.precision] = bench.rate
                except Exception as error:
                    rows = [failed(name, error)]
            self.rows += [(settings, row) for row in rows]
            self._save()
            gc.collect()
            if settings.device == "cuda":
                torch.cuda.empty_cache()
            where = f"{name}, {settings.precision}, batch size {settings.batch_size}"
            Console(stderr=True).print(f"{where}: {time.monotonic() - start:.0f} s")

    def markdown(self) -> str:
        """Return machine, versions and table as Markdown."""
        return "\n".join([*self._about(), "", _HEADER, *map(_line, *zip(*self.rows, strict=True))])

    def _about(self) -> Iterator[str]:
        known = self.machine
        if known["gpu"]:
            yield f"**{known['gpu']}**, {known['gpu_memory_gb']} GB\n"
        yield f"{known['processor']}, {known['threads']} threads; {known['system']}\n"
        yield ", ".join(f"{name} {version}" for name, version in known["versions"].items()) + "\n"
        yield "matrix product: " + ", ".join(
            f"{rate / 1e9:,.0f} GFLOP/s ({precision})" for precision, rate in self.rates.items()
        )

    def _save(self) -> None:
        report = {
            "machine": self.machine,
            "load_average_after": list(os.getloadavg()),
            "matrix_product_flops_per_s": self.rates,
            "rows": [
                {**asdict(row), "met": row.met, "settings": asdict(settings)}
                for settings, row in self.rows
            ],
        }
        write_text(self.out, json.dumps(report, indent=2))
        write_text(self.out.with_suffix(".md"), self.markdown() + "\n")


def _line(settings: Settings, row: Row) -> str:
    sides = f"failed: {row.failure}" if row.failure else _sides(row)
    cells = (row.name, settings.precision, settings.batch_size, _value(row), _target(row), sides)
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _value(row: Row) -> str:
    if row.value is None:
        return ""
    number = (
        f"{row.value:.1e}"
        if row.unit == ""
        else f"{row.value:.3g}"
        if row.value < 1000
        else f"{row.value:,.0f}"
    )
    return f"{number} {row.unit}".strip()


def _target(row: Row) -> str:
    if row.met is None:
        return ""
    bound = f"≥ {row.at_least:g}" if row.at_least is not None else f"≤ {row.at_most:.3g}"
    return bound if row.met else f"{bound}, missed"


def _sides(row: Row) -> str:
    texts = []
    for side in row.details.values():
        if isinstance(side, dict) and "median_s" in side:
            texts.append(f"{side['median_s']:.3g} s")
        elif isinstance(side, dict):
            texts.append(f"{side['peak'] / 1e9:.2f} GB")
    return " / ".join(texts)
