"""The experiments that a campaign can consist of, as tasks that need each other.

They are those of PromptKD (arXiv 2403.02781, section 4):

- ``few_shot``: teacher tuned on k shots of all classes, student distilled, tested on all classes;
- ``base_to_novel``: teacher tuned on the base classes, tested on base and novel classes apart;
- ``cross_dataset``: teacher tuned on the source; for each target class vectors of its names, a student distilled on
  its unlabelled images, and a test;
- ``domain_generalization``: teacher and student of the source, tested on the source and on variants of it.

The last two share what is fitted on the source.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from kdpl.benchmark.campaign import DATA_CONFIGS, Campaign, Row, config_of, dataset_name
from kdpl.benchmark.results import RUN_FILE
from kdpl.benchmark.tasks import CONFIG, Run, Task
from kdpl.data.readers.benchmark import BENCHMARKS
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER, LAST

_BASE_TO_NOVEL = f"{DATA_CONFIGS}/base_to_novel.yaml"


@dataclass(frozen=True)
class Place:
    """Where a campaign is run and what is the same for all its fits.

    Attributes:
        out: The campaign's folder.
        root: The folder of all datasets of the benchmark.
        options: Options for every fit, after all others.
    """

    out: Path
    root: str | None = None
    options: tuple[str, ...] = ()


def plan(campaign: Campaign, place: Place, rows: Sequence[str] | None = None) -> list[Task]:
    """Give a campaign's tasks in the order in which one process does them.

    Args:
        campaign: The campaign.
        place: Where it is run.
        rows: Rows to test; None: all. Teachers that they need are fitted without a test.
    """
    planner = _Planner(campaign, place)
    tasks: dict[str, Task] = {}
    for protocol in campaign.protocols:
        for task in getattr(planner, protocol)():
            tasks.setdefault(task.name, task)
    wanted: set[str] = set()

    def want(name: str) -> None:
        if name not in wanted:
            wanted.add(name)
            for need in tasks[name].needs:
                want(need)

    for task in tasks.values():
        if task.kind == "test" and (rows is None or task.run.row in rows):
            want(task.name)
    return [task for task in tasks.values() if task.name in wanted]


class _Planner:
    def __init__(self, campaign: Campaign, place: Place) -> None:
        self.campaign = campaign
        self.place = place
        self.distilled_from = {row.of for row in campaign.rows.values()}

    # --- the protocols ---

    def few_shot(self) -> Iterator[Task]:
        for dataset in self.campaign.datasets:
            for shots in self.campaign.shots:
                options = (f"--data.init_args.shots={shots}",)
                yield from self._both_stages("few_shot", f"shots_{shots}", dataset, options=options)

    def base_to_novel(self) -> Iterator[Task]:
        for dataset in self.campaign.datasets:
            yield from self._both_stages("base_to_novel", "", dataset, overlays=(_BASE_TO_NOVEL,))

    def cross_dataset(self) -> Iterator[Task]:
        yield from self._fits_on_source("teacher")
        for dataset, seed in self._targets(self.campaign.datasets):
            for row in self._rows("teacher"):
                run = self._run("cross_dataset", "", dataset, seed, row)
                yield from self._class_vectors(run, dataset)
                yield self._test_elsewhere(run, dataset)
            for row in self._rows("student"):
                run = self._run("cross_dataset", "", dataset, seed, row)
                vectors = self._run("cross_dataset", "", dataset, seed, self._teacher_of(row))
                fit = self._fit(run, dataset, teacher=self._source_run(seed, self._teacher_of(row)), vectors=vectors)
                yield fit
                yield self._test(run, fit)

    def domain_generalization(self) -> Iterator[Task]:
        for stage in ("teacher", "student"):
            for fit in self._fits_on_source(stage):
                yield fit
                yield self._test(fit.run, fit)
        for dataset, seed in self._targets(self.campaign.variants):
            for row in (*self._rows("teacher"), *self._rows("student")):
                run = self._run("domain_generalization", "", dataset, seed, row)
                yield from self._class_vectors(run, dataset)
                yield self._test_elsewhere(run, dataset)

    def _both_stages(
        self, protocol: str, setting: str, dataset: str, overlays: Iterable[str] = (), options: Iterable[str] = ()
    ) -> Iterator[Task]:
        for seed in self.campaign.seeds:
            for row in self.campaign.rows.values():
                run = self._run(protocol, setting, dataset, seed, row)
                of = self._run(protocol, setting, dataset, seed, self._teacher_of(row)) if row.of else None
                fit = self._fit(run, dataset, overlays, options, teacher=of)
                yield fit
                yield self._test(run, fit)

    def _fits_on_source(self, stage: str) -> Iterator[Task]:
        for seed in self.campaign.seeds:
            for row in self._rows(stage):
                of = self._source_run(seed, self._teacher_of(row)) if row.of else None
                yield self._fit(self._source_run(seed, row), self._source(), teacher=of)

    # --- single tasks ---

    def _fit(
        self,
        run: Run,
        dataset: str,
        overlays: Iterable[str] = (),
        options: Iterable[str] = (),
        teacher: Run | None = None,
        vectors: Run | None = None,
    ) -> Task:
        """Give the fit of a run, or the import in its place.

        Args:
            run: The run.
            dataset: What it trains on.
            overlays: The protocol's configs.
            options: The protocol's options.
            teacher: Run of the teacher that a student is distilled from.
            vectors: Run whose class vectors take the place of the teacher's.
        """
        row = self.campaign.rows[run.row]
        exceptional = [each for each in self.campaign.per_dataset if dataset_name(dataset) in each.datasets]
        own = [*row.configs, *(file for each in exceptional for file in getattr(each, row.stage))]
        configs = [config_of(dataset), *overlays, *self.campaign.configs, *own]
        args = [f"--config={file}" for file in configs]
        args += [*self._root(dataset), *options, *row.options, *self._options(own)]
        needs = []
        if teacher is not None:
            args.append(f"--model.init_args.teacher={self._folder(teacher)}")
            needs.append(self._fit_name(teacher))
        if vectors is not None:
            args.append(f"--model.init_args.class_vectors={self._folder(vectors) / CLASS_VECTORS_FILE}")
            needs.append(f"{vectors.name}/class_vectors")
        args += [f"--seed_everything={run.seed}", f"--out={self._folder(run)}"]
        folder = self._folder(run)
        result = folder / (CLASS_VECTORS_FILE if row.stage == "teacher" else CLASSIFIER_FOLDER)
        if row.teacher_file is not None:
            file = row.teacher_file.format(dataset=dataset_name(dataset), seed=run.seed)
            return Task(run, "import", ("import", "teacher", file, *args), folder, result, tuple(needs))
        return Task(run, "fit", ("fit", *args), folder, result, tuple(needs))

    def _test(self, run: Run, fit: Task) -> Task:
        folder = self._folder(run)
        return Task(
            run,
            "test",
            ("test", f"--config={folder / CONFIG}", f"--out={folder}"),
            folder,
            folder / RUN_FILE,
            (fit.name,),
        )

    def _class_vectors(self, run: Run, dataset: str) -> Iterator[Task]:
        """Give the task that makes a teacher's class vectors for a target, if there is a student to use them."""
        if run.row not in self.distilled_from:
            return
        source = self._source_run(run.seed, self.campaign.rows[run.row])
        folder = self._folder(run)
        file = folder / CLASS_VECTORS_FILE
        data = (f"--config={config_of(dataset)}", *self._root(dataset))
        args = ("class-vectors", f"--teacher={self._folder(source)}", *data, f"--out={file}")
        yield Task(run, "class_vectors", args, folder, file, (self._fit_name(source),))

    def _test_elsewhere(self, run: Run, dataset: str) -> Task:
        """Give the test, on a target, of what was fitted on the source."""
        row = self.campaign.rows[run.row]
        source = self._source_run(run.seed, row)
        needs = [self._fit_name(source)]
        args = ["test", f"--config={self._folder(source) / CONFIG}"]
        args += [f"--config={config_of(dataset)}", *self._root(dataset)]
        if row.of is not None:
            teacher = self._run(run.protocol, run.setting, dataset, run.seed, self._teacher_of(row))
            args.append(f"--model.init_args.class_vectors={self._folder(teacher) / CLASS_VECTORS_FILE}")
            needs.append(f"{teacher.name}/class_vectors")
        folder = self._folder(run)
        args.append(f"--out={folder}")
        checkpoint = self._folder(source) / LAST
        return Task(run, "test", tuple(args), folder, folder / RUN_FILE, tuple(needs), checkpoint)

    # --- names and options ---

    def _rows(self, stage: str) -> Iterator[Row]:
        return (row for row in self.campaign.rows.values() if row.stage == stage)

    def _teacher_of(self, row: Row) -> Row:
        return self.campaign.rows[row.of or ""]

    def _targets(self, datasets: Iterable[str]) -> Iterator[tuple[str, int]]:
        return ((dataset, seed) for dataset in datasets for seed in self.campaign.seeds)

    def _source(self) -> str:
        return self.campaign.source or ""

    def _run(self, protocol: str, setting: str, dataset: str, seed: int, row: Row) -> Run:
        parts = [protocol, dataset_name(dataset), setting, f"seed_{seed}", row.name]
        return Run(protocol, setting, dataset_name(dataset), seed, row.name, "/".join(part for part in parts if part))

    def _source_run(self, seed: int, row: Row) -> Run:
        name = dataset_name(self._source())
        # its own accuracy is one of domain generalisation
        return Run("domain_generalization", "", name, seed, row.name, f"source/{name}/seed_{seed}/{row.name}")

    def _folder(self, run: Run) -> Path:
        return self.place.out / run.name

    def _fit_name(self, run: Run) -> str:
        return f"{run.name}/{'fit' if self.campaign.rows[run.row].teacher_file is None else 'import'}"

    def _root(self, dataset: str) -> tuple[str, ...]:
        known = self.place.root is not None and dataset_name(dataset) in BENCHMARKS
        return (f"--data.init_args.root={self.place.root}",) if known else ()

    def _options(self, configs: Sequence[str]) -> Iterator[str]:
        """Give the options for every fit, without the epochs where nothing is tuned: those stay 0."""
        epochs = None
        for file in configs:
            settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
            epochs = (settings.get("trainer") or {}).get("max_epochs", epochs)
        options = iter(self.place.options)
        for option in options:
            if epochs == 0 and option.partition("=")[0] == "--trainer.max_epochs":
                if "=" not in option:
                    next(options, None)
                continue
            yield option
