"""The arithmetic of a campaign's tables: means and deviations over seeds, averages over datasets, published figures.

The harmonic mean of a run is that of its base and novel accuracy, and the table shows its mean over seeds. The average
over datasets is the field's: base and novel accuracies are averaged over the datasets, and the harmonic mean is taken
of those two averages, for each seed. The published average of PromptKD is made in that way: its eleven datasets average
to 86.96 and 80.73, whose harmonic mean is the published 83.73; the mean of its eleven harmonic means is 83.63.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kdpl.benchmark.campaign import Campaign, Row, dataset_name
from kdpl.benchmark.published import METHODS, METRICS, Figures
from kdpl.benchmark.results import Result

AVERAGE = "average"

_ACCURACY = {"test/acc": "accuracy"}
_BASE_TO_NOVEL = dict(zip(METRICS, ("base", "novel", "HM"), strict=True))
_TITLES = {
    "few_shot": "Few-shot",
    "base_to_novel": "Base to novel",
    "cross_dataset": "Cross-dataset",
    "domain_generalization": "Domain generalisation",
}
TRANSDUCTIVE = "transductive: unlabelled images of the novel classes were seen in distillation"
SELECTED_ON_TEST = "the epoch was chosen by the accuracy on the base classes' test images"


@dataclass(frozen=True)
class Cell:
    """One place of a table, in %.

    Attributes:
        protocol: The experiment.
        setting: What tells runs of a protocol apart; may be empty.
        dataset: The dataset, or ``average``.
        row: The variant's name.
        metric: The metric's name.
        values: One value for each seed that is there.
        expected: Number of seeds of the campaign.
        published: The published figure, where there is one.
    """

    protocol: str
    setting: str
    dataset: str
    row: str
    metric: str
    values: tuple[float, ...]
    expected: int
    published: float | None = None

    @property
    def mean(self) -> float | None:
        """Mean over the seeds that are there."""
        return statistics.mean(self.values) if self.values else None

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds; 0 for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def difference(self) -> float | None:
        """How far the mean is above the published figure."""
        return self.mean - self.published if self.mean is not None and self.published is not None else None


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        group: The dataset, in a table that has several datasets below each other; else empty.
        title: The variant; ``**title**`` is bold.
        cells: One cell for each column.
        transductive: Whether unlabelled images of novel classes were seen in training.
        selected_on_test: Whether the epoch was chosen on test images.
    """

    group: str
    title: str
    cells: tuple[Cell, ...]
    transductive: bool = False
    selected_on_test: bool = False


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: What it is of.
        columns: Titles of the columns with numbers.
        lines: Its lines.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def grouped(self) -> bool:
        """Whether several datasets stand below each other."""
        return any(line.group for line in self.lines)

    @property
    def with_published(self) -> bool:
        """Whether published figures stand beside the campaign's own."""
        return any(cell.published is not None for line in self.lines for cell in line.cells)


def harmonic_mean(base: float, novel: float) -> float:
    """Give 2·b·n / (b + n), 0 where both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def tables(campaign: Campaign, results: Iterable[Result]) -> list[Table]:
    """Make a campaign's tables of what is there.

    Args:
        campaign: The campaign, which says what is expected.
        results: Results of finished runs; those that the campaign does not have are left out.
    """
    maker = _Maker(campaign, results)
    below_each_other = [p for p in campaign.protocols if p in ("few_shot", "base_to_novel")]
    made = []
    if below_each_other and len(campaign.datasets) == 1:
        made.append(maker.of_one_dataset(below_each_other))
    else:
        made += [maker.by_dataset(protocol) for protocol in below_each_other]
    if "cross_dataset" in campaign.protocols:
        targets = [dataset_name(each) for each in campaign.datasets]
        made.append(maker.of_targets("cross_dataset", targets, targets))
    if "domain_generalization" in campaign.protocols:
        targets = [dataset_name(each) for each in campaign.variants]
        columns = [dataset_name(campaign.source or ""), *targets]
        made.append(maker.of_targets("domain_generalization", columns, targets))
    return made


class _Maker:
    def __init__(self, campaign: Campaign, results: Iterable[Result]) -> None:
        self.campaign = campaign
        self.results = {(r.protocol, r.setting, r.dataset, r.row, r.seed): r for r in results}
        self.datasets = [dataset_name(each) for each in campaign.datasets]

    def of_one_dataset(self, protocols: Sequence[str]) -> Table:
        """All protocols of a single dataset side by side."""
        dataset = self.datasets[0]
        columns = [column for protocol in protocols for column in self._columns(protocol)]
        titles = [
            f"{_shots(setting)}, all classes" if protocol == "few_shot" else _BASE_TO_NOVEL[metric]
            for protocol, setting, metric in columns
        ]
        lines = [
            self._line("", row, [self._cell(protocol, setting, dataset, row, m) for protocol, setting, m in columns])
            for row in self.campaign.rows.values()
        ]
        return Table(dataset, tuple(titles), tuple(lines))

    def by_dataset(self, protocol: str) -> Table:
        """One protocol, datasets below each other, and their average."""
        columns = self._columns(protocol)
        titles = [
            _shots(setting) if protocol == "few_shot" else _BASE_TO_NOVEL[metric] for _, setting, metric in columns
        ]
        lines = [
            self._line(dataset, row, [self._cell(protocol, setting, dataset, row, m) for _, setting, m in columns])
            for dataset in self.datasets
            for row in self.campaign.rows.values()
        ]
        lines += [
            self._line(
                AVERAGE, row, [self._average(protocol, setting, self.datasets, row, m) for _, setting, m in columns]
            )
            for row in self.campaign.rows.values()
        ]
        if protocol == "base_to_novel":
            lines += self._other_methods()
        return Table(_TITLES[protocol], tuple(titles), tuple(lines))

    def of_targets(self, protocol: str, datasets: Sequence[str], averaged: Sequence[str]) -> Table:
        """One protocol, a column for each dataset, and the average over some of them."""
        (metric,) = _ACCURACY
        lines = [
            self._line(
                "",
                row,
                [
                    *(self._cell(protocol, "", dataset, row, metric) for dataset in datasets),
                    self._average(protocol, "", averaged, row, metric),
                ],
            )
            for row in self.campaign.rows.values()
        ]
        return Table(_TITLES[protocol], (*datasets, AVERAGE), tuple(lines))

    def _columns(self, protocol: str) -> list[tuple[str, str, str]]:
        if protocol == "few_shot":
            return [(protocol, f"shots_{shots}", metric) for shots in self.campaign.shots for metric in _ACCURACY]
        return [(protocol, "", metric) for metric in _BASE_TO_NOVEL]

    def _line(self, group: str, row: Row, cells: Sequence[Cell]) -> Line:
        protocols = {cell.protocol for cell in cells}
        found = [r for key, r in self.results.items() if key[0] in protocols and r.row == row.name]
        if group not in ("", AVERAGE):
            found = [r for r in found if r.dataset == group]
        return Line(
            group,
            row.title,
            tuple(cells),
            any(r.transductive for r in found),
            any(r.selected_on_test for r in found),
        )

    def _value(self, protocol: str, setting: str, dataset: str, row: Row, metric: str, seed: int) -> float | None:
        result = self.results.get((protocol, setting, dataset, row.name, seed))
        return 100 * result.metrics[metric] if result is not None and metric in result.metrics else None

    def _over_seeds(self, value: Callable[[int], float | None]) -> tuple[float, ...]:
        return tuple(found for seed in self.campaign.seeds if (found := value(seed)) is not None)

    def _cell(self, protocol: str, setting: str, dataset: str, row: Row, metric: str) -> Cell:
        values = self._over_seeds(lambda seed: self._value(protocol, setting, dataset, row, metric, seed))
        published = None
        if protocol == "base_to_novel" and row.published is not None:
            published = METHODS[row.published].by_dataset.get(dataset, {}).get(metric)
        return Cell(protocol, setting, dataset, row.name, metric, values, len(self.campaign.seeds), published)

    def _average(self, protocol: str, setting: str, datasets: Sequence[str], row: Row, metric: str) -> Cell:
        """Give the average over datasets, of the seeds that have them all."""

        def mean(of: str, seed: int) -> float | None:
            values = [self._value(protocol, setting, dataset, row, of, seed) for dataset in datasets]
            return statistics.mean(v for v in values if v is not None) if None not in values and values else None

        def value(seed: int) -> float | None:
            if metric != "test/hm":
                return mean(metric, seed)
            base, novel = (mean(of, seed) for of in METRICS[:2])
            return harmonic_mean(base, novel) if base is not None and novel is not None else None

        figures = published_average(row.published, datasets) if protocol == "base_to_novel" and row.published else {}
        values = self._over_seeds(value)
        expected = len(self.campaign.seeds)
        return Cell(protocol, setting, AVERAGE, row.name, metric, values, expected, figures.get(metric))

    def _other_methods(self) -> list[Line]:
        """Give the averages of other methods, where the campaign has the datasets that they are of."""
        if set(self.datasets) != set(METHODS["promptkd"].by_dataset):
            return []
        shown = {row.published for row in self.campaign.rows.values()}
        return [
            Line(
                AVERAGE,
                f"{method.title}, published",
                tuple(
                    Cell("base_to_novel", "", AVERAGE, key, metric, (), 0, method.average[metric])
                    for metric in _BASE_TO_NOVEL
                ),
            )
            for key, method in METHODS.items()
            if key not in shown
        ]


def _shots(setting: str) -> str:
    number = setting.removeprefix("shots_")
    return f"{number} shot" if number == "1" else f"{number} shots"


def published_average(method: str, datasets: Iterable[str]) -> Figures:
    """Give a method's published average over some datasets; empty if one of them has no published figures."""
    figures = [METHODS[method].by_dataset.get(dataset) for dataset in datasets]
    known = [each for each in figures if each is not None]
    if not known or len(known) < len(figures):
        return {}
    base, novel = (statistics.mean(each[metric] for each in known) for metric in METRICS[:2])
    return dict(zip(METRICS, (base, novel, harmonic_mean(base, novel)), strict=True))
