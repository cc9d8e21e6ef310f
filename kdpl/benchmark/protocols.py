"""The experiments that a campaign can consist of, as tasks that need each other.

They are those of PromptKD (arXiv 2403.02781, section 4):

- ``few_shot``: teacher tuned on k shots of all classes, student distilled, tested on all classes;
- ``base_to_novel``: teacher tuned on the base classes, tested on base and novel classes separately;
- ``cross_dataset``: teacher tuned on the source; for each target class vectors of its names, a
  student distilled on its unlabelled images, and a test;
- ``domain_generalization``: teacher and student of the source, tested on the source and on variants
  of it.

The last two share what is fitted on the source.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

from kdpl.benchmark.campaign import DATA_CONFIGS, Campaign, Stage, config_of, dataset_name
from kdpl.benchmark.readers import BENCHMARKS
from kdpl.benchmark.tasks import RESULT_FILE, CampaignRun, Task
from kdpl.runtime.configs import read_config
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER, CONFIG_FILE, LAST

_BASE_TO_NOVEL = f"{DATA_CONFIGS}/base_to_novel.yaml"


def plan(
    campaign: Campaign,
    out: Path,
    root: str | None = None,
    options: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> list[Task]:
    """Return a campaign's tasks in the order in which one process does them.

    Args:
        campaign: The campaign.
        out: Its folder.
        root: The folder of all datasets of the benchmark.
        options: Options for every fit, after all others.
        rows: The rows that are tested, all if none are named; teachers that they need are fitted
            without a test.
    """
    planner = _Planner(campaign, out, root, options)
    tasks: dict[str, Task] = {}
    for protocol in campaign.protocols:
        for task in getattr(planner, protocol)():
            tasks.setdefault(task.name, task)
    wanted: set[str] = set()
    new = [
        task.name
        for task in tasks.values()
        if task.kind == "test" and (not rows or task.run.row in rows)
    ]
    while new:
        wanted.update(new)
        new = [need for name in new for need in tasks[name].needs if need not in wanted]
    return [task for task in tasks.values() if task.name in wanted]


class _Planner:
    def __init__(
        self, campaign: Campaign, out: Path, root: str | None, options: Sequence[str]
    ) -> None:
        self.campaign, self.out, self.root, self.options = campaign, out, root, options
        self.rows, self._source = campaign.rows, campaign.source or ""

    def few_shot(self) -> Iterator[Task]:
        for dataset, shots in product(self.campaign.datasets, self.campaign.shots):
            yield from self._both_stages("few_shot", dataset, shots)

    def base_to_novel(self) -> Iterator[Task]:
        for dataset in self.campaign.datasets:
            yield from self._both_stages("base_to_novel", dataset, None, [_BASE_TO_NOVEL])

    def cross_dataset(self) -> Iterator[Task]:
        yield from self._fits_on_source("cross_dataset", "teacher")
        for dataset, seed in product(self.campaign.datasets, self.campaign.seeds):
            for row in self._rows_of("cross_dataset", "teacher"):
                yield from self._on_other_datasets("cross_dataset", dataset, seed, row)
            for row in self._rows_of("cross_dataset", "student"):
                run, of = self._run("cross_dataset", dataset, seed, row), self.rows[row].of or ""
                vectors = self._run("cross_dataset", dataset, seed, of)
                fit = self._fit(
                    run, dataset, teachers=[self._source_run(seed, of)], vectors=vectors
                )
                yield from (fit, self._test(fit))

    def domain_generalization(self) -> Iterator[Task]:
        protocol = "domain_generalization"
        stages: tuple[Stage, ...] = ("teacher", "student")
        for fit in (fit for stage in stages for fit in self._fits_on_source(protocol, stage)):
            yield from (fit, self._test(fit))
        for dataset, seed in product(self.campaign.variants, self.campaign.seeds):
            for row in (row for stage in stages for row in self._rows_of(protocol, stage)):
                yield from self._on_other_datasets(protocol, dataset, seed, row)

    def _both_stages(
        self, protocol: str, dataset: str, shots: int | None, overlays: Sequence[str] = ()
    ) -> Iterator[Task]:
        setting = "" if shots is None else f"shots_{shots}"
        options = [] if shots is None else [f"--data.init_args.shots={shots}"]
        for seed, (name, row) in product(self.campaign.seeds, self.rows.items()):
            if row.runs(protocol, shots):
                run = self._run(protocol, dataset, seed, name, setting)
                of = [
                    self._run(protocol, dataset, seed, each, setting)
                    for each in (row.of, *row.more)
                    if each
                ]
                fit = self._fit(run, dataset, overlays, options, of)
                yield from (fit, self._test(fit))

    def _rows_of(self, protocol: str, stage: Stage) -> list[str]:
        return [
            name for name in self.campaign.rows_of(stage) if self.rows[name].runs(protocol, None)
        ]

    def _fits_on_source(self, protocol: str, stage: Stage) -> Iterator[Task]:
        for seed, name in product(self.campaign.seeds, self._rows_of(protocol, stage)):
            of = self.rows[name].of
            teachers = [self._source_run(seed, of)] if of else []
            yield self._fit(self._source_run(seed, name), self._source, teachers=teachers)

    def _fit(
        self,
        run: CampaignRun,
        dataset: str,
        overlays: Iterable[str] = (),
        options: Iterable[str] = (),
        teachers: Sequence[CampaignRun] = (),
        vectors: CampaignRun | None = None,
    ) -> Task:
        """Return a run's fit.

        The class vectors of the run ``vectors`` replace the teacher's own.
        """
        row, folder = self.rows[run.row], self._folder(run)
        exceptions = [
            each for each in self.campaign.per_dataset if dataset_name(dataset) in each.datasets
        ]
        own = [*row.configs, *(file for each in exceptions for file in getattr(each, row.stage))]
        configs = [config_of(dataset), *overlays, *self.campaign.configs, *own]
        args = [f"--config={file}" for file in configs]
        if row.stage == "teacher":
            options = [*options, *(one for each in exceptions for one in each.teacher_options)]
        args += [*self._root_of(dataset), *options, *row.options, *self.options]
        trainers = [read_config(file).get("trainer") or {} for file in own]
        if [trainer["max_epochs"] for trainer in trainers if "max_epochs" in trainer][-1:] == [0]:
            # nothing is tuned, whatever the options for every fit say
            args.append("--trainer.max_epochs=0")
        needs: list[str] = []
        if teachers:
            folders = [str(self._folder(teacher)) for teacher in teachers]
            args.append(
                f"--model.init_args.teacher={json.dumps(folders) if folders[1:] else folders[0]}"
            )
            needs += [f"{teacher.name}/fit" for teacher in teachers]
        if vectors is not None:
            args.append(
                f"--model.init_args.class_vectors={self._folder(vectors) / CLASS_VECTORS_FILE}"
            )
            needs.append(f"{vectors.name}/class_vectors")
        args += [f"--seed_everything={run.seed}", f"--out={folder}"]
        result = folder / (CLASS_VECTORS_FILE if row.stage == "teacher" else CLASSIFIER_FOLDER)
        return Task(run, "fit", ("fit", *args), folder, result, tuple(needs))

    def _test(self, fit: Task) -> Task:
        args = ("test", f"--config={fit.folder / CONFIG_FILE}", f"--out={fit.folder}")
        return Task(fit.run, "test", args, fit.folder, fit.folder / RESULT_FILE, (fit.name,))

    def _on_other_datasets(
        self, protocol: str, dataset: str, seed: int, row: str
    ) -> Iterator[Task]:
        """Yield the tasks on a target of what was fitted on the source.

        These are class vectors for its students, and a test.
        """
        run, source, of = (
            self._run(protocol, dataset, seed, row),
            self._source_run(seed, row),
            self.rows[row].of,
        )
        folder, fitted, needs = self._folder(run), self._folder(source), [f"{source.name}/fit"]
        data = [f"--config={config_of(dataset)}", *self._root_of(dataset)]
        if row in {each.of for each in self.rows.values()}:
            file = folder / CLASS_VECTORS_FILE
            args = ["class-vectors", f"--teacher={fitted}", *data, f"--out={file}"]
            yield Task(run, "class_vectors", tuple(args), folder, file, tuple(needs))
        args = ["test", f"--config={fitted / CONFIG_FILE}", *data]
        if of is not None:
            vectors = self._run(protocol, dataset, seed, of)
            args.append(
                f"--model.init_args.class_vectors={self._folder(vectors) / CLASS_VECTORS_FILE}"
            )
            needs.append(f"{vectors.name}/class_vectors")
        args.append(f"--out={folder}")
        yield Task(
            run, "test", tuple(args), folder, folder / RESULT_FILE, tuple(needs), fitted / LAST
        )

    def _run(
        self, protocol: str, dataset: str, seed: int, row: str, setting: str = ""
    ) -> CampaignRun:
        name = dataset_name(dataset)
        folder = "/".join(filter(None, [protocol, name, setting, f"seed_{seed}", row]))
        return CampaignRun(
            protocol=protocol, setting=setting, dataset=name, seed=seed, row=row, name=folder
        )

    def _source_run(self, seed: int, row: str) -> CampaignRun:
        # its own accuracy is one of domain generalisation
        run = self._run("domain_generalization", self._source, seed, row)
        return run.model_copy(update={"name": f"source/{run.dataset}/seed_{seed}/{row}"})

    def _folder(self, run: CampaignRun) -> Path:
        return self.out / run.name

    def _root_of(self, dataset: str) -> list[str]:
        known = self.root is not None and dataset_name(dataset) in BENCHMARKS
        return [f"--data.init_args.root={self.root}"] if known else []
