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

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from kdpl.benchmark.campaign import DATA_CONFIGS, Campaign, Protocol, config_of, dataset_name
from kdpl.benchmark.steps import RESULT_FILE, CampaignRun, CampaignStep, shots_of
from kdpl.data.readers.benchmark import BENCHMARKS
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
    planner = _Planner(campaign, out, root, options)
    steps: dict[str, CampaignStep] = {}
    for protocol in campaign.protocols:
        for step in planner.steps(protocol):
            steps.setdefault(step.title, step)

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
        self.rows, self.source = campaign.rows, campaign.source or ""

    def steps(self, protocol: Protocol) -> Iterator[CampaignStep]:
        campaign, seeds = self.campaign, self.campaign.seeds
        if protocol in ("few_shot", "base_to_novel"):
            shots = campaign.shots_of(protocol)
            for dataset, n, seed, name in product(campaign.datasets, shots, seeds, self.rows):
                if self.rows[name].runs(protocol, n):
                    setting = "" if n is None else f"shots_{n}"
                    run = self._run(protocol, dataset, seed, name, setting)
                    yield from self._fit(run, dataset)
            return
        teachers, students = (
            [name for name in campaign.rows_of(stage) if self.rows[name].runs(protocol, None)]
            for stage in ("teacher", "student")
        )
        if protocol == "cross_dataset":
            for seed, name in product(seeds, teachers):
                yield from self._fit(self._source_run(seed, name), self.source, tested=False)
            for dataset, seed in product(campaign.datasets, seeds):
                for name in teachers:
                    yield from self._elsewhere(protocol, dataset, seed, name)
                for name in students:
                    yield from self._fit(self._run(protocol, dataset, seed, name), dataset)
        elif protocol == "domain_generalization":
            for name, seed in product([*teachers, *students], seeds):
                yield from self._fit(self._source_run(seed, name), self.source)
            for dataset, seed, name in product(campaign.variants, seeds, [*teachers, *students]):
                yield from self._elsewhere(protocol, dataset, seed, name)

    def _fit(self, run: CampaignRun, dataset: str, tested: bool = True) -> Iterator[CampaignStep]:
        """Yield a run's fit, and perhaps its test."""
        row, folder = self.rows[run.row], self.out / run.name
        configs, options = [config_of(dataset)], self._root_of(dataset)
        if run.protocol == "base_to_novel":
            configs.append(_BASE_TO_NOVEL)
        elif run.setting:
            options.append(f"--data.init_args.shots={shots_of(run.setting)}")
        row_configs = list(row.configs)
        for exception in self.campaign.per_dataset:
            if run.dataset in exception.datasets:
                row_configs += getattr(exception, row.stage)
                options += exception.teacher_options if row.stage == "teacher" else ()
        args = [f"--config={file}" for file in (*configs, *self.campaign.configs, *row_configs)]
        args += [*options, *row.options, *self.options]
        trainers = [read_config(file).get("trainer") or {} for file in row_configs]
        if [trainer["max_epochs"] for trainer in trainers if "max_epochs" in trainer][-1:] == [0]:
            # an untuned row stays untuned, even if the options for every fit set max_epochs
            args.append("--trainer.max_epochs=0")

        needs = []
        if row.of is not None:
            alike = self._run(run.protocol, dataset, run.seed, row.of, run.setting)
            teacher = alike
            if run.protocol in ("cross_dataset", "domain_generalization"):
                teacher = self._source_run(run.seed, row.of)
            needs.append(f"{teacher.name}/fit")
            args.append(f"--model.init_args.teacher={self.out / teacher.name}")
            if run.protocol == "cross_dataset":
                # of the target's names
                args.append(f"--model.init_args.class_vectors={self._vectors(alike)}")
                needs.append(f"{alike.name}/class_vectors")
        args += [f"--seed_everything={run.seed}", f"--out={folder}"]
        result = folder / (CLASS_VECTORS_FILE if row.stage == "teacher" else CLASSIFIER_FOLDER)
        fit = f"{run.name}/fit"
        yield CampaignStep(fit, "fit", result, tuple(needs), run=run, args=("fit", *args))
        if tested:
            title, result = f"{run.name}/test", folder / RESULT_FILE
            test = ("test", f"--config={folder / CONFIG_FILE}", f"--out={folder}")
            yield CampaignStep(title, "test", result, (fit,), run=run, args=test)

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
        self, protocol: str, dataset: str, seed: int, row: str, setting: str = ""
    ) -> CampaignRun:
        name = dataset_name(dataset)
        folder = "/".join(filter(None, [protocol, name, setting, f"seed_{seed}", row]))
        return CampaignRun(
            protocol=protocol,
            setting=setting,
            dataset=name,
            seed=seed,
            row=row,
            title=(self.rows[row].title or row).strip("*"),
            name=folder,
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
