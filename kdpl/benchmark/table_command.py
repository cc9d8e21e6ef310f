"""``python -m kdpl table``: the tables of a campaign."""

from pathlib import Path

from kdpl.benchmark.command import CAMPAIGNS
from kdpl.errors import ConfigError
from kdpl.runtime.configs import read_config
from kdpl.runtime.files import write_text


def table(folder: str) -> int:
    """Print the tables of a campaign, beside published figures.

    It may be unfinished. They are also written into its folder as Markdown and CSV.

    Args:
        folder: The --out of benchmark.
    """
    from kdpl.benchmark.campaign import parse_campaign
    from kdpl.benchmark.formats import markdown, to_csv
    from kdpl.benchmark.table import tables
    from kdpl.benchmark.tasks import read_all

    files = sorted((Path(folder) / CAMPAIGNS).glob("*.yaml"))
    if not files:
        raise ConfigError(
            f"{folder} is not the folder of a campaign: give one that benchmark was started with "
            "as --out"
        )
    results = list(read_all(Path(folder)))
    made = [
        each
        for file in files
        for each in tables(parse_campaign(read_config(str(file)), file), results)
    ]
    text = markdown(made)
    write_text(Path(folder) / "table.md", text)
    write_text(Path(folder) / "table.csv", to_csv(made))
    print(text, end="")
    return 0
