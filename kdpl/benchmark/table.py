"""The arithmetic of a campaign's tables.

Computes means and deviations over seeds and averages over datasets, and adds published figures.

Each run has a harmonic mean of base and novel accuracy; the table shows its mean over seeds.
Averages over datasets follow the field: for each seed, base and novel accuracies are averaged over
the datasets, and then the harmonic mean of the two averages is taken. PromptKD's published average
does so: its eleven datasets average to 86.96 and 80.73, with the published harmonic mean 83.73; the
mean of its eleven harmonic means is 83.63.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from kdpl.benchmark.campaign import Campaign, CampaignRow, dataset_name
from kdpl.benchmark.steps import Result, shots_of
from kdpl.metrics import ACC, BASE_ACC, BASE_MAP, HM, NOVEL_ACC, NOVEL_MAP, test_key

AVERAGE = "average"

_ACCURACY = test_key(ACC)
_BASE, _NOVEL, _HM = map(test_key, (BASE_ACC, NOVEL_ACC, HM))
_BASE_TO_NOVEL = {_BASE: "base", _NOVEL: "novel", _HM: "HM"}
_TITLES = {
    "few_shot": "Few-shot",
    "base_to_novel": "Base to novel",
    "cross_dataset": "Cross-dataset",
    "domain_generalization": "Domain generalisation",
}


Figures = Mapping[str, float]
"""Accuracies in % by metric."""

_PRINTED = {
    "imagenet": (80.83, 74.66, 77.62),
    "caltech101": (98.91, 96.65, 97.77),
    "oxford_pets": (96.30, 98.01, 97.15),
    "stanford_cars": (82.80, 83.37, 83.13),
    "oxford_flowers": (99.42, 82.62, 90.24),
    "food101": (92.43, 93.68, 93.05),
    "fgvc_aircraft": (49.12, 41.81, 45.17),
    "sun397": (83.69, 81.54, 82.60),
    "dtd": (85.84, 71.37, 77.94),
    "eurosat": (97.54, 82.08, 89.14),
    "ucf101": (89.71, 82.27, 86.10),
}
FIGURES: Mapping[str, Figures] = {
    name: dict(zip((_BASE, _NOVEL, _HM), figures, strict=True))
    for name, figures in _PRINTED.items()
}
"""PromptKD's published figures of the base-to-novel experiment.

From the table of base-to-novel results of arXiv 2403.02781, as printed, even where the harmonic
mean does not match the two accuracies: for StanfordCars and UCF101 it would be 83.08 and 85.83.
"""


class Column(NamedTuple):
    """A column of numbers: the title, and the metric and runs of the numbers."""

    title: str
    protocol: str
    setting: str
    metric: str
    dataset: str | None = None  # None: the dataset of the line


class Cell(NamedTuple):
    """Mean and standard deviation over seeds, and the published figure, in %; None if missing.

    ``seeds`` of ``seeds_expected`` seeds are there; none is expected if the row is not run.
    """

    column: Column
    dataset: str
    row: str
    mean: float | None = None
    standard_deviation: float | None = None
    seeds: int = 0
    seeds_expected: int = 0
    published: float | None = None

    @property
    def difference(self) -> float | None:
        """Mean minus published figure."""
        return None if self.mean is None or self.published is None else self.mean - self.published


class Line(NamedTuple):
    """A line of a table: dataset, if there are several, and title; ``**title**`` is bold."""

    group: str
    title: str
    cells: Sequence[Cell]
    transductive: bool = False
    selected_on_test: bool = False


class ResultTable(NamedTuple):
    """A table: title, titles of the numeric columns, lines, and the campaign's notes."""

    title: str
    columns: tuple[str, ...]
    lines: Sequence[Line]
    notes: tuple[str, ...] = ()


def tables(campaign: Campaign, results: Iterable[Result]) -> list[ResultTable]:
    """Make a campaign's tables from the results of finished runs; ignores results of others."""
    maker = _Maker(campaign, results)
    datasets, variants = (
        [*map(dataset_name, configs)] for configs in (campaign.datasets, campaign.variants)
    )

    # protocols within a dataset: one table for a single dataset, or one for each protocol
    by_dataset = [name for name in campaign.protocols if name in ("few_shot", "base_to_novel")]
    result_tables = []
    if by_dataset and len(datasets) == 1:
        columns = [
            column for protocol in by_dataset for column in maker.columns(protocol, ", all classes")
        ]
        result_tables.append(maker.table(datasets[0], columns, {"": datasets[0]}, datasets))
    else:
        groups = {name: name for name in (*datasets, AVERAGE)}
        result_tables += [
            maker.table(_TITLES[protocol], maker.columns(protocol), groups, datasets)
            for protocol in by_dataset
        ]

    # protocols across datasets: a column for each target
    targets = {
        "cross_dataset": (datasets, datasets),
        "domain_generalization": ([dataset_name(campaign.source or ""), *variants], variants),
    }
    for protocol, (shown, averaged) in targets.items():
        if protocol in campaign.protocols:
            columns = [Column(name, protocol, "", _ACCURACY, name) for name in (*shown, AVERAGE)]
            result_tables.append(maker.table(_TITLES[protocol], columns, {"": AVERAGE}, averaged))
    return result_tables


class _Maker:
    def __init__(self, campaign: Campaign, results: Iterable[Result]) -> None:
        datasets = {*map(dataset_name, (*campaign.datasets, *campaign.variants))}
        datasets.add(dataset_name(campaign.source or ""))
        results = [r for r in results if r.dataset in datasets and r.seed in campaign.seeds]
        self.campaign = campaign
        self.probes = dict.fromkeys(r.row for r in results if r.probe)
        self.rows = dict(campaign.rows)
        for name in self.probes:
            runs = [r for r in results if r.row == name]
            row = {
                "teacher": name,
                "protocols": [*{r.protocol for r in runs}],
                "shots": [*{shots_of(r.setting) for r in runs if r.setting}],
            }
            self.rows[name] = CampaignRow.model_validate(row)
        self.results = [r for r in results if r.row in self.rows]
        self.figures = defaultdict[tuple[str, ...], dict[int, Figures]](dict)
        for r in self.results:
            percents = {metric: 100 * value for metric, value in r.metrics.items()}
            self.figures[r.protocol, r.setting, r.dataset, r.row][r.seed] = percents

    def columns(self, protocol: str, suffix: str = "") -> list[Column]:
        if protocol == "base_to_novel":
            return [Column(title, protocol, "", metric) for metric, title in _BASE_TO_NOVEL.items()]
        titles = {n: f"{n} shot{'s' if n != 1 else ''}{suffix}" for n in self.campaign.shots}
        return [Column(title, protocol, f"shots_{n}", _ACCURACY) for n, title in titles.items()]

    def table(
        self, title: str, columns: Sequence[Column], groups: dict[str, str], averaged: Sequence[str]
    ) -> ResultTable:
        """Make a table with a line for each pair of group, a dataset, and row."""
        lines = []
        protocols = {column.protocol for column in columns}
        for (group, dataset), row in product(groups.items(), self.rows):
            if any(self._runs(row, column) for column in columns):
                cells = [
                    self._cell(column, column.dataset or dataset, row, averaged)
                    for column in columns
                ]
                runs = [
                    r
                    for r in self.results
                    if r.row == row and r.protocol in protocols and dataset in (r.dataset, AVERAGE)
                ]
                transductive = any(run.transductive for run in runs)
                selected = any(run.selected_on_test for run in runs)
                line_title = self.rows[row].title or row
                lines.append(Line(group, line_title, cells, transductive, selected))
        return ResultTable(
            title, tuple(column.title for column in columns), lines, self.campaign.notes
        )

    def _runs(self, row: str, column: Column) -> bool:
        if row in self.probes and column.metric in (_NOVEL, _HM):
            # a probe knows only the base classes
            return False
        return self.rows[row].runs(column.protocol, shots_of(column.setting))

    def _cell(self, column: Column, dataset: str, row: str, averaged: Sequence[str]) -> Cell:
        figures, published = self._figures(column, dataset, row), FIGURES.get(dataset, {})
        if dataset == AVERAGE:
            # of each seed that has results on all datasets
            parts = [self._figures(column, name, row) for name in averaged]
            seeds = [seed for seed in self.campaign.seeds if all(seed in part for part in parts)]
            figures = {seed: average([part[seed] for part in parts]) for seed in seeds}
            published = average([FIGURES.get(name, {}) for name in averaged])
        values = [part[column.metric] for part in figures.values() if column.metric in part]
        # statistics computes exactly: a mean halfway between two figures is rounded as by hand
        mean = statistics.mean(values) if values else None
        deviation = statistics.stdev(values) if len(values) > 1 else None
        expected = len(self.campaign.seeds) if self._runs(row, column) else 0
        shown = self.rows[row].published and column.protocol == "base_to_novel"
        figure = published.get(column.metric) if shown else None
        return Cell(column, dataset, row, mean, deviation, len(values), expected, figure)

    def _figures(self, column: Column, dataset: str, row: str) -> Mapping[int, Figures]:
        return self.figures[column.protocol, column.setting, dataset, row]


def average(parts: Sequence[Figures]) -> Figures:
    """Return the averages of figures that all datasets have; HM is that of two averages."""
    metrics = [metric for metric in parts[0] if all(metric in part for part in parts)]
    means = {metric: statistics.mean(part[metric] for part in parts) for metric in metrics}
    if _HM in means:
        halves = (_BASE, _NOVEL) if _BASE in means else (test_key(BASE_MAP), test_key(NOVEL_MAP))
        means[_HM] = statistics.harmonic_mean([means[half] for half in halves])
    return means
