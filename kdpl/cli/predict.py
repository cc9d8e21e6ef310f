"""``python -m kdpl predict CLASSIFIER IMAGES…``: classify images with a finished classifier."""

from collections.abc import Sequence

from kdpl.cli.arguments import Parser
from kdpl.errors import ConfigError


def predict(argv: Sequence[str]) -> int:
    """Classify images and write one row for each, in the order given.

    Args:
        argv: Arguments after ``predict``.

    Returns:
        0, with unreadable images too.

    Raises:
        KdplError: The classifier is missing or damaged, an argument does not exist, or settings do not fit.
    """
    options = _parser().parse_args(argv)
    for name in ("top_k", "batch_size", "workers"):
        number = getattr(options, name)
        if number is not None and number < 1:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is {number}, expected 1 or more: give another number")

    from kdpl.deploy.classifying import classify

    return classify(options)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m kdpl predict", description="Classify images with a finished classifier: one row for each image."
    )
    parser.add_argument("classifier", help="classifier folder of a student's run")
    parser.add_argument(
        "images",
        nargs="*",
        help="image files, .tar shards, folders that are searched recursively, patterns such as 'a/**/*.jpg', and .txt "
        "lists, whose paths begin at the list's folder",
    )
    parser.add_argument(
        "--list", metavar="FILE", help="file with one path of an image or shard on each line, from here"
    )
    parser.add_argument("--part", metavar="I/N", help="classify the I-th of N parts alone, as one of an array of jobs")
    parser.add_argument(
        "--out",
        help="table to write, .csv, .jsonl or .parquet; cut off, the same command goes on; CSV on standard output if "
        "not given",
    )
    parser.add_argument(
        "--add-classes", metavar="FILE", help="class vectors of further classes, which the class-vectors command wrote"
    )
    parser.add_argument("--top-k", type=int, default=1, help="guesses for each image, in columns (default 1)")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (default 64)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--workers", type=int, help="threads that decode (default: one for each processor core)")
    return parser
