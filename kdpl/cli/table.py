"""``python -m kdpl table``: the tables of what a campaign has come to."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from kdpl.benchmark.campaign import Campaign, parse_campaign
from kdpl.benchmark.formats import ENDINGS, FORMATS, render
from kdpl.benchmark.results import read_all
from kdpl.benchmark.table import tables
from kdpl.cli.arguments import Parser
from kdpl.cli.benchmark import CAMPAIGNS
from kdpl.errors import ConfigError
from kdpl.runtime.configs import require_configs
from kdpl.runtime.files import atomic_path


def table(argv: Sequence[str]) -> int:
    """Print a campaign's tables, and write them into its folder as Markdown, CSV and LaTeX.

    Args:
        argv: Arguments after ``table``.

    Returns:
        0.

    Raises:
        ConfigError: The folder is not one of a campaign.
        ArtifactError: A result in it is damaged.
    """
    parser = Parser(prog="python -m kdpl table", description="Make the tables of a campaign, finished or not.")
    parser.add_argument("folder", metavar="FOLDER", help="the --out of benchmark")
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="what is printed (default markdown)")
    parser.add_argument("--out", metavar="FILE", help="write what is printed into this file as well")
    options = parser.parse_args(argv)
    folder = Path(options.folder)
    campaigns = _campaigns(folder)
    results = list(read_all(folder))
    made = [each for campaign in campaigns for each in tables(campaign, results)]
    for form, ending in ENDINGS.items():
        _write(folder / f"table.{ending}", render(made, form))
    text = render(made, options.format)
    if options.out is not None:
        _write(Path(options.out), text)
    print(text, end="")
    return 0


def _campaigns(folder: Path) -> list[Campaign]:
    files = sorted((folder / CAMPAIGNS).glob("*.yaml"))
    if not files:
        raise ConfigError(
            f"{folder} is not the folder of a campaign: give one that benchmark was started with as --out"
        )
    require_configs(map(str, files))
    return [parse_campaign(yaml.safe_load(file.read_text(encoding="utf-8")), file.stem, str(file)) for file in files]


def _write(file: Path, text: str) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
