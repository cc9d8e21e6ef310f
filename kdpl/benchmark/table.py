"""The arithmetic of a campaign's tables: means and deviations over seeds, averages over datasets, published figures.

The harmonic mean of a run is that of its base and novel accuracy, and the table shows its mean over seeds. The average
over datasets is the field's: base and novel accuracies are averaged over the datasets, and the harmonic mean is taken
of those two averages, for each seed. The published average of PromptKD is made in that way: its eleven datasets average
to 86.96 and 80.73, whose harmonic mean is the published 83.73; the mean of its eleven harmonic means is 83.63.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from kdpl.benchmark.campaign import Campaign, dataset_name
from kdpl.benchmark.published import METHODS, METRICS, Figures
from kdpl.benchmark.tasks import Result
from kdpl.metrics import test_key

AVERAGE = "average"

_ACCURACY = test_key("acc")
_BASE, _NOVEL, _HM = METRICS
_BASE_TO_NOVEL = {_BASE: "base", _NOVEL: "novel", _HM: "HM"}
_TITLES = {
    "few_shot": "Few-shot",
    "base_to_novel": "Base to novel",
    "cross_dataset": "Cross-dataset",
    "domain_generalization": "Domain generalisation",
}
_RUN = ["protocol", "setting", "row", "seed"]
_CELL = ["protocol", "setting", "dataset", "row", "metric"]
_FLAGS = ["transductive", "selected_on_test"]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: Its title.
        columns: Titles of the columns with numbers.
        cells: One row for each cell, line by line: its ``group`` (the dataset, where several stand below each other,
            else empty), ``title`` (of the variant; ``**title**`` is bold), coordinates, ``mean`` and
            ``standard_deviation`` over the ``seeds`` that are there, out of ``seeds_expected``, which are 0 where the
            row is not run, ``published``,
            ``difference`` of the mean to it, and flags. Accuracies are in %; what is missing is NaN.
    """

    title: str
    columns: tuple[str, ...]
    cells: pd.DataFrame


class _Column(NamedTuple):
    title: str
    protocol: str
    setting: str
    metric: str
    dataset: str | None = None  # None: that of the line


def harmonic_mean(base: float, novel: float) -> float:
    """Return 2·b·n / (b + n), 0 where both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def tables(campaign: Campaign, results: Iterable[Result]) -> list[Table]:
    """Make a campaign's tables from the results of finished runs; those that it does not have are left out."""
    maker = _Maker(campaign, results)
    datasets = [dataset_name(each) for each in campaign.datasets]
    by_dataset = [protocol for protocol in campaign.protocols if protocol in ("few_shot", "base_to_novel")]
    made = []
    if by_dataset and len(datasets) == 1:
        columns = [column for protocol in by_dataset for column in maker.columns(protocol, ", all classes")]
        made.append(maker.table(datasets[0], columns, {"": datasets[0]}, datasets))
    else:
        for protocol in by_dataset:
            groups = {name: name for name in (*datasets, AVERAGE)}
            made.append(maker.table(_TITLES[protocol], maker.columns(protocol), groups, datasets))
    variants = [dataset_name(each) for each in campaign.variants]
    targets = {
        "cross_dataset": (datasets, datasets),
        "domain_generalization": ([dataset_name(campaign.source or ""), *variants], variants),
    }
    for name, (shown, averaged) in targets.items():
        if name in campaign.protocols:
            columns = [_Column(dataset, name, "", _ACCURACY, dataset) for dataset in (*shown, AVERAGE)]
            made.append(maker.table(_TITLES[name], columns, {"": ""}, averaged))
    return made


class _Maker:
    def __init__(self, campaign: Campaign, results: Iterable[Result]) -> None:
        self.campaign = campaign
        found = [r for r in results if r.row in campaign.rows and r.seed in campaign.seeds]
        self.values = pd.DataFrame(
            [
                (r.protocol, r.setting, r.dataset, r.row, r.seed, metric, 100 * value)
                for r in found
                for metric, value in r.metrics.items()
            ],
            columns=["protocol", "setting", "dataset", "row", "seed", "metric", "value"],
        ).astype({"value": float})
        flags = pd.DataFrame([r.model_dump() for r in found], columns=["protocol", "dataset", "row", *_FLAGS])
        flags = pd.concat([flags, flags.assign(dataset=AVERAGE)])
        self.flags = flags.groupby(["protocol", "dataset", "row"])[_FLAGS].any().reset_index()

    def columns(self, protocol: str, suffix: str = "") -> list[_Column]:
        if protocol == "base_to_novel":
            return [_Column(title, protocol, "", metric) for metric, title in _BASE_TO_NOVEL.items()]
        return [
            _Column(f"{shots} shot{'s' if shots != 1 else ''}{suffix}", protocol, f"shots_{shots}", _ACCURACY)
            for shots in self.campaign.shots
        ]

    def table(self, title: str, columns: Sequence[_Column], groups: dict[str, str], averaged: Sequence[str]) -> Table:
        """Make a table with a line for each group, of one dataset each, and row; ``averaged`` are averaged over."""
        cells = pd.DataFrame(
            [
                (i, group, self.campaign.title(row), c.protocol, c.setting, c.dataset or dataset, row, c.metric)
                for i, (group, dataset, row) in enumerate(
                    (group, dataset, row)
                    for group, dataset in groups.items()
                    for row in self.campaign.rows
                    if any(self._runs(row, column.protocol, column.setting) for column in columns)
                )
                for c in columns
            ],
            columns=["line", "group", "title", *_CELL],
        )
        values = pd.concat([self.values, self._averages(averaged)]).groupby(_CELL)["value"]
        # exact arithmetic: a mean that lies between two printed figures is rounded as by hand
        over_seeds = values.agg(mean=statistics.mean, standard_deviation=_deviation, seeds="count")
        cells = cells.merge(over_seeds.reset_index(), how="left", on=_CELL)
        cells["seeds"] = cells["seeds"].fillna(0).astype(int)
        run = [self._runs(cell.row, cell.protocol, cell.setting) for cell in cells.itertuples()]
        cells["seeds_expected"] = [len(self.campaign.seeds) if each else 0 for each in run]
        cells["published"] = [
            self._published(cell.protocol, cell.dataset, cell.row, cell.metric, averaged) for cell in cells.itertuples()
        ]
        cells = cells.merge(self.flags, how="left", on=["protocol", "dataset", "row"])
        for flag in _FLAGS:
            cells[flag] = cells[flag].eq(True).groupby(cells["line"]).transform("any")
        if AVERAGE in groups and columns[0].protocol == "base_to_novel":
            cells = pd.concat([cells, self._other_methods(averaged)], ignore_index=True)
        cells = cells.astype({"mean": float, "standard_deviation": float, "published": float})
        cells["difference"] = cells["mean"] - cells["published"]
        return Table(title, tuple(column.title for column in columns), cells.drop(columns="line"))

    def _runs(self, row: str, protocol: str, setting: str) -> bool:
        shots = int(setting.removeprefix("shots_")) if setting else None
        return self.campaign.rows[row].runs(protocol, shots)

    def _averages(self, datasets: Sequence[str]) -> pd.DataFrame:
        """Return averages over datasets, of the runs that have them all, as values of the dataset ``average``."""
        means = {metric: self._mean(metric, datasets) for metric in (_ACCURACY, _BASE, _NOVEL)}
        both = means[_BASE].index.intersection(means[_NOVEL].index)
        means[_HM] = means[_BASE][both].combine(means[_NOVEL][both], harmonic_mean)
        long = [values.rename("value").reset_index().assign(metric=metric) for metric, values in means.items()]
        return pd.concat(long).assign(dataset=AVERAGE)

    def _mean(self, metric: str, datasets: Sequence[str]) -> pd.Series:
        values = self.values[self.values["metric"] == metric]
        wide = values.pivot(index=_RUN, columns="dataset", values="value").reindex(columns=datasets).dropna()
        return pd.Series([statistics.mean(row) for row in wide.to_numpy()], index=wide.index, dtype=float)

    def _published(self, protocol: str, dataset: str, row: str, metric: str, averaged: Sequence[str]) -> float | None:
        method = self.campaign.rows[row].published
        if protocol != "base_to_novel" or method is None:
            return None
        of_average = dataset == AVERAGE
        figures = published_average(method, averaged) if of_average else METHODS[method].by_dataset.get(dataset, {})
        return figures.get(metric)

    def _other_methods(self, datasets: Sequence[str]) -> pd.DataFrame:
        """Return the averages of other methods, if the campaign has the datasets that they are of."""
        shown = {row.published for row in self.campaign.rows.values()}
        methods = METHODS if set(datasets) == set(METHODS["promptkd"].by_dataset) else {}
        return pd.DataFrame(
            [
                {"group": AVERAGE, "title": f"{method.title}, published", "protocol": "base_to_novel", "setting": ""}
                | {"dataset": AVERAGE, "row": key, "metric": metric, "seeds": 0, "seeds_expected": 0}
                | {"published": method.average[metric], "transductive": False, "selected_on_test": False}
                for key, method in methods.items()
                if key not in shown
                for metric in _BASE_TO_NOVEL
            ]
        )


def _deviation(values: pd.Series) -> float:
    """Sample standard deviation over seeds; NaN for a single one."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def published_average(method: str, datasets: Iterable[str]) -> Figures:
    """Return a method's published average over some datasets; empty if one of them has no published figures."""
    figures = [METHODS[method].by_dataset.get(dataset) for dataset in datasets]
    known = [each for each in figures if each is not None]
    if not known or len(known) < len(figures):
        return {}
    base, novel = (statistics.mean(each[metric] for each in known) for metric in (_BASE, _NOVEL))
    return {_BASE: base, _NOVEL: novel, _HM: harmonic_mean(base, novel)}
