"""``python -m kdpl benchmark`` does the missing runs of a campaign, ``table`` prints its tables."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from kdpl.errors import ConfigError, KdplError
from kdpl.runtime.advice import command
from kdpl.runtime.configs import config_files, read_config
from kdpl.runtime.files import write_text

if TYPE_CHECKING:
    from kdpl.benchmark.steps import CampaignStep

CAMPAIGNS = "campaigns"


def benchmark(
    campaign: str,
    *,
    out: str,
    root: str | None = None,
    datasets: list[str] = [],  # noqa: B006 - not changed
    seeds: list[int] = [],  # noqa: B006
    rows: list[str] = [],  # noqa: B006
    settings: list[str],
) -> int:
    """Do the missing runs of a campaign over datasets, seeds and variants.

    Started twice, for example on two GPUs, both processes share the work. Other options, such as
    --trainer.max_epochs 2, are passed to every fit.

    Args:
        campaign: YAML file; configs/benchmark/ has examples.
        out: Folder of the campaign.
        root: Folder of all datasets.
        datasets: Subset of the campaign's datasets.
        seeds: Subset of the campaign's seeds.
        rows: Subset of the campaign's rows; teachers that they need are fitted too.
        settings: Options for every fit.
    """
    read_config(campaign)  # refuses a missing file before imports that take seconds

    from kdpl.benchmark import runner
    from kdpl.benchmark.campaign import read_campaign
    from kdpl.benchmark.protocols import plan

    file, folder = Path(campaign), Path(out)
    chosen = read_campaign(file).choose(datasets, seeds, rows)
    steps = plan(chosen, folder, root, settings, rows)
    problems = _problems(steps, root)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        return 1

    # keep the campaign, from which the table command knows what is missing
    write_text(folder / CAMPAIGNS / file.name, file.read_text(encoding="utf-8"))
    say = partial(print, flush=True)
    failures = runner.run_steps(steps, folder, say, runner.in_subprocess)
    for step, why in failures:
        print(f"failed: {step.title}: {why}{f' (log: {step.log})' if step.log.is_file() else ''}")
    if not failures:
        runs = sum(step.kind == "test" for step in steps)
        print(f"all {runs} runs are done: {command('table', folder)}")
    return 1 if failures else 0


def table(folder: str) -> int:
    """Print the tables of a campaign, finished or not, next to published figures.

    The tables are also written into the campaign's folder as Markdown and CSV.

    Args:
        folder: The folder that benchmark was given as --out.
    """
    files = sorted((Path(folder) / CAMPAIGNS).glob("*.yaml"))
    if not files:
        raise ConfigError(
            f"{folder} is not the folder of a campaign: give one that benchmark was started with "
            "as --out"
        )

    from kdpl.benchmark.campaign import parse_campaign
    from kdpl.benchmark.steps import read_all
    from kdpl.benchmark.table import tables
    from kdpl.benchmark.table_text import markdown, to_csv

    results = list(read_all(Path(folder)))
    campaign_tables = [
        table
        for file in files
        for table in tables(parse_campaign(read_config(str(file)), file), results)
    ]
    text = markdown(campaign_tables)
    write_text(Path(folder) / "table.md", text)
    write_text(Path(folder) / "table.csv", to_csv(campaign_tables))
    print(text, end="")
    return 0


def _problems(steps: "Sequence[CampaignStep]", root: str | None) -> list[str]:
    """Return why steps cannot start: data, weights or settings; record their commands if none."""
    from kdpl.benchmark.steps import one_of_each_kind
    from kdpl.cli.fit import parse_stage
    from kdpl.clip import ClipConfig, load_clip, load_image_clip
    from kdpl.data.readers.benchmark import BENCHMARKS, BenchmarkSet
    from kdpl.student import StudentDistillation

    problems: dict[str, None] = {}
    clips: dict[tuple[bool, ClipConfig], None] = {}

    def collect(function: Callable[..., object], *args: object) -> None:
        try:
            function(*args)
        except KdplError as error:
            problems[str(error)] = None

    def check_data(name: str) -> None:
        if root is None:
            raise ConfigError(f"dataset {name} needs the folder of all datasets: give it as --root")
        dataset = BenchmarkSet(name, root)
        dataset.require_folder(dataset.images)
        dataset.read_text(dataset.index)

    def check_fit(step: "CampaignStep") -> None:
        stage = parse_stage("fit", step.args[1:])
        model = stage.config.model
        is_student = issubclass(resolve_name(model.class_path), StudentDistillation)
        clips[is_student, ClipConfig(**vars(model.init_args.clip))] = None
        stage.check()

    missing = [step for step in steps if not step.done()]
    files = dict.fromkeys(Path(file).stem for step in missing for file in config_files(step.args))
    for name in files:
        if name in BENCHMARKS:
            collect(check_data, name)
    # another command may have the same settings, such as another number of GPUs: fit can tell
    changed = [step for step in steps if step.has_other_command()]
    fits = {step.title: step for step in (*changed, *one_of_each_kind(missing))}
    # parse every command, then load every CLIP once
    for step in fits.values():
        collect(check_fit, step)
    for is_student, clip in clips:
        collect(load_image_clip if is_student else load_clip, clip)
    if not problems:
        for step in changed:
            step.save_command()
    return list(problems)
