"""``python -m kdpl data download|check NAME``: getting datasets, and seeing that they are whole."""

from collections.abc import Sequence
from pathlib import Path

from kdpl.cli.arguments import Parser
from kdpl.errors import ConfigError


def data(argv: Sequence[str]) -> int:
    """Download or check a dataset.

    Args:
        argv: Arguments after ``data``.

    Returns:
        0, or 1 where the dataset is not whole or cannot be downloaded for others.

    Raises:
        KdplError: The dataset is unknown, missing or damaged, or the hub cannot be reached.
    """
    options = _parser().parse_args(argv)
    if options.action == "download":
        from kdpl.data.download import download

        return 0 if download(options.name, Path(options.root).expanduser()) else 1
    if options.workers is not None and options.workers < 1:
        raise ConfigError(f"--workers is {options.workers}, expected 1 or more: give another number")
    from kdpl.data.check import check

    given = {"root": options.root, "unlabeled": options.unlabeled, "class_names": options.class_names}
    return 0 if check(options.name, options.workers, **given) else 1


def _parser() -> Parser:
    parser = Parser(prog="python -m kdpl data", description="Get datasets, and see that they are whole.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="download|check")
    download = actions.add_parser("download", help="get a dataset of the benchmark; goes on where it was cut off")
    download.add_argument("name", metavar="NAME", help="a dataset of the benchmark, for example oxford_pets")
    download.add_argument("--root", required=True, help="the folder of all datasets")
    check = actions.add_parser("check", help="count classes and decode every image; exit code 1 if anything is wrong")
    check.add_argument("name", metavar="NAME", help="a dataset of the benchmark, folder or table")
    check.add_argument("--root", help="the folder of all datasets; for folder, the dataset's own; for table, the file")
    check.add_argument(
        "--unlabeled",
        action="append",
        metavar="PLACE",
        help="folder, pattern, list or shards of unlabelled images, for folder and table; may be given several times",
    )
    check.add_argument("--class-names", help="file that names the class folders or labels, for folder and table")
    check.add_argument("--workers", type=int, help="processes that decode (default: one for each processor core)")
    return parser
