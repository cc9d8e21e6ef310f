"""``python -m kdpl table``: print the tables of a campaign."""

from pathlib import Path

from kdpl.benchmark.command import CAMPAIGNS
from kdpl.errors import ConfigError
from kdpl.runtime.configs import read_config
from kdpl.runtime.files import write_text


def table(folder: str) -> int:
    """Print the tables of a campaign, finished or not, next to published figures.

    The tables are also written into the campaign's folder as Markdown and CSV.

    Args:
        folder: The folder that benchmark was given as --out.
    """
    from kdpl.benchmark.campaign import parse_campaign
    from kdpl.benchmark.formats import markdown, to_csv
    from kdpl.benchmark.steps import read_all
    from kdpl.benchmark.table import tables

    files = sorted((Path(folder) / CAMPAIGNS).glob("*.yaml"))
    if not files:
        raise ConfigError(
            f"{folder} is not the folder of a campaign: give one that benchmark was started with "
            "as --out"
        )
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
