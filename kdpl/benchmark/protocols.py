"""The experiments of a campaign as steps that depend on each other.

PromptKD's experiments (arXiv 2403.02781, section 4):

- ``few_shot``: teacher tuned on k shots of all classes, student distilled, tested on all classes;
- ``base_to_novel``: teacher tuned on the base classes, tested on base and novel classes separately;
- ``cross_dataset``: teacher tuned on the source; for each target, class vectors of its names, a
  student distilled on its unlabelled images, and a test;
- ``domain_generalization``: teacher and student of the source, tested on the source and on variants
  of it.

The last two share the models fitted on the source.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

from kdpl.benchmark.campaign import DATA_CONFIGS, Campaign, Protocol, Stage, config_of, dataset_name
from kdpl.benchmark.readers import BENCHMARKS
from kdpl.benchmark.steps import RESULT_FILE, CampaignRun, CampaignStep
from kdpl.runtime.configs import read_config
from kdpl.runtime.run_folder import CLASS_VECTORS_FILE, CLASSIFIER_FOLDER, CONFIG_FILE, LAST

_BASE_TO_NOVEL = f"{DATA_CONFIGS}/base_to_novel.yaml"


def plan(
    campaign: Campaign,
    out: Path,
    root: str | None = None,
    options: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> list[CampaignStep]:
    """Return a campaign's steps in the order of a single process."""
    # the steps of all protocols; shared steps once
    planner = _Planner(campaign, out, root, options)
    steps: dict[str, CampaignStep] = {}
    for protocol in campaign.protocols:
        for step in planner.steps(protocol):
            steps.setdefault(step.title, step)

    # the tests of the rows, and all steps that these need
    wanted: set[str] = set()
    new = [
        step.title
        for step in steps.values()
        if step.kind == "test" and (not rows or step.run.row in rows)
    ]
    while new:
        wanted.update(new)
        new = [need for name in new for need in steps[name].needs if need not in wanted]
    return [step for step in steps.values() if step.title in wanted]


class _Planner:
    def __init__(
        self, campaign: Campaign, out: Path, root: str | None, options: Sequence[str]
    ) -> None:
        self.campaign, self.out, self.root, self.options = campaign, out, root, options
        self.rows, self.seeds, self.source = campaign.rows, campaign.seeds, campaign.source or ""

    def steps(self, protocol: Protocol) -> Iterator[CampaignStep]:
        if protocol == "cross_dataset":
            yield from self._cross_dataset()
        elif protocol == "domain_generalization":
            yield from self._domain_generalization()
        elif protocol == "base_to_novel":
            for dataset in self.campaign.datasets:
                yield from self._on_dataset(protocol, dataset, overlays=[_BASE_TO_NOVEL])
        else:
            for dataset, shots in product(self.campaign.datasets, self.campaign.shots):
                option = [f"--data.init_args.shots={shots}"]
                yield from self._on_dataset(protocol, dataset, shots, options=option)

    def _on_dataset(
        self,
        protocol: Protocol,
        dataset: str,
        shots: int | None = None,
        overlays: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> Iterator[CampaignStep]:
        setting = "" if shots is None else f"shots_{shots}"
        for seed, (name, row) in product(self.seeds, self.rows.items()):
            if row.runs(protocol, shots):
                run = self._run(protocol, dataset, seed, name, setting)
                teacher = None
                if row.of is not None:
                    teacher = self._run(protocol, dataset, seed, row.of, setting)
                yield from self._tested(self._fit(run, dataset, overlays, options, teacher))

    def _cross_dataset(self) -> Iterator[CampaignStep]:
        # fits on the source
        teachers = self._rows_of("cross_dataset", "teacher")
        for seed, name in product(self.seeds, teachers):
            yield self._fit(self._source_run(seed, name), self.source)
        # tests of teachers, and students, on each target
        for dataset, seed in product(self.campaign.datasets, self.seeds):
            for name in teachers:
                yield from self._elsewhere("cross_dataset", dataset, seed, name)
            for name in self._rows_of("cross_dataset", "student"):
                run = self._run("cross_dataset", dataset, seed, name)
                vectors = self._run("cross_dataset", dataset, seed, str(self.rows[name].of))
                teacher = self._source_run(seed, vectors.row)
                yield from self._tested(self._fit(run, dataset, teacher=teacher, vectors=vectors))

    def _domain_generalization(self) -> Iterator[CampaignStep]:
        protocol: Protocol = "domain_generalization"
        names = [*self._rows_of(protocol, "teacher"), *self._rows_of(protocol, "student")]
        for name, seed in product(names, self.seeds):
            run, of = self._source_run(seed, name), self.rows[name].of
            teacher = None if of is None else self._source_run(seed, of)
            yield from self._tested(self._fit(run, self.source, teacher=teacher))
        for dataset, seed, name in product(self.campaign.variants, self.seeds, names):
            yield from self._elsewhere(protocol, dataset, seed, name)

    def _rows_of(self, protocol: Protocol, stage: Stage) -> list[str]:
        return [
            name for name in self.campaign.rows_of(stage) if self.rows[name].runs(protocol, None)
        ]

    def _tested(self, fit: CampaignStep) -> Iterator[CampaignStep]:
        args = ("test", f"--config={fit.folder / CONFIG_FILE}", f"--out={fit.folder}")
        yield fit
        title, result = f"{fit.run.name}/test", fit.folder / RESULT_FILE
        yield CampaignStep(title, "test", result, (fit.title,), run=fit.run, args=args)

    def _fit(
        self,
        run: CampaignRun,
        dataset: str,
        overlays: Iterable[str] = (),
        options: Iterable[str] = (),
        teacher: CampaignRun | None = None,
        vectors: CampaignRun | None = None,
    ) -> CampaignStep:
        """Return a run's fit; class vectors of the run ``vectors`` replace the teacher's."""
        # configs and options, from the general to the particular
        row, folder = self.rows[run.row], self.out / run.name
        name = dataset_name(dataset)
        exceptions = [
            exception for exception in self.campaign.per_dataset if name in exception.datasets
        ]
        row_configs = list(row.configs)
        row_configs += [file for exception in exceptions for file in getattr(exception, row.stage)]
        configs = [config_of(dataset), *overlays, *self.campaign.configs, *row_configs]
        args = [f"--config={file}" for file in configs]
        args += [*self._root_of(dataset), *options, *row.options, *self.options]
        trainers = [read_config(file).get("trainer") or {} for file in row_configs]
        if [trainer["max_epochs"] for trainer in trainers if "max_epochs" in trainer][-1:] == [0]:
            # an untuned row stays untuned, even if the options for every fit set max_epochs
            args.append("--trainer.max_epochs=0")

        # teacher and class vectors
        needs = []
        if teacher is not None:
            needs.append(f"{teacher.name}/fit")
            args.append(f"--model.init_args.teacher={self.out / teacher.name}")
        if vectors is not None:
            args.append(f"--model.init_args.class_vectors={self._vectors(vectors)}")
            needs.append(f"{vectors.name}/class_vectors")
        args += [f"--seed_everything={run.seed}", f"--out={folder}"]
        result = folder / (CLASS_VECTORS_FILE if row.stage == "teacher" else CLASSIFIER_FOLDER)
        title = f"{run.name}/fit"
        return CampaignStep(title, "fit", result, tuple(needs), run=run, args=("fit", *args))

    def _elsewhere(
        self, protocol: Protocol, dataset: str, seed: int, name: str
    ) -> Iterator[CampaignStep]:
        """Yield the steps on a target for a model of the source: class vectors, and a test."""
        run, of = self._run(protocol, dataset, seed, name), self.rows[name].of
        source = self._source_run(seed, name)
        folder, fitted, needs = self.out / run.name, self.out / source.name, [f"{source.name}/fit"]
        data = [f"--config={config_of(dataset)}", *self._root_of(dataset)]
        if any(name == row.of for row in self.rows.values()):
            # students learn from class vectors of the target's names
            file = self._vectors(run)
            args = ("class-vectors", f"--teacher={fitted}", *data, f"--out={file}")
            title = f"{run.name}/class_vectors"
            yield CampaignStep(title, "class_vectors", file, tuple(needs), run=run, args=args)
        if of is not None:
            teacher = self._run(protocol, dataset, seed, of)
            data.append(f"--model.init_args.class_vectors={self._vectors(teacher)}")
            needs.append(f"{teacher.name}/class_vectors")
        args = ("test", f"--config={fitted / CONFIG_FILE}", *data, f"--out={folder}")
        yield CampaignStep(
            f"{run.name}/test",
            "test",
            folder / RESULT_FILE,
            tuple(needs),
            run=run,
            args=args,
            checkpoint=fitted / LAST,
        )

    def _run(
        self, protocol: Protocol, dataset: str, seed: int, row: str, setting: str = ""
    ) -> CampaignRun:
        name = dataset_name(dataset)
        folder = "/".join(filter(None, [protocol, name, setting, f"seed_{seed}", row]))
        return CampaignRun(
            protocol=protocol, setting=setting, dataset=name, seed=seed, row=row, name=folder
        )

    def _source_run(self, seed: int, row: str) -> CampaignRun:
        # the accuracy on the source is one of domain generalisation
        run = self._run("domain_generalization", self.source, seed, row)
        return run.model_copy(update={"name": f"source/{run.dataset}/seed_{seed}/{row}"})

    def _vectors(self, run: CampaignRun) -> Path:
        return self.out / run.name / CLASS_VECTORS_FILE

    def _root_of(self, dataset: str) -> list[str]:
        if self.root is None or dataset_name(dataset) not in BENCHMARKS:
            return []
        return [f"--data.init_args.root={self.root}"]
