"""``python -m kdpl cache``: compute the teacher's features of all views once, for any number of students."""

import argparse
from collections.abc import Sequence

from kdpl.cli.arguments import Parser


def cache(argv: Sequence[str]) -> int:
    """Fill the teacher cache that the settings of a student's fit name; go on where it was cut.

    Args:
        argv: Arguments after ``cache``.

    Returns:
        0.

    Raises:
        KdplError: The settings are not those of a student with a cache, the cache is of something else or damaged, or
            an entry that was verified differs.
    """
    options, settings = _parse(argv)
    from kdpl.cli.feature_filling import fill

    fill(settings, options.views, options.verify)
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="python -m kdpl cache",
        allow_abbrev=False,
        description="Compute the teacher's features of views of the unlabelled images, for a student's fit to read.",
        epilog="All else is what the student's fit takes: --config FILE, --model.init_args.teacher RUN, and "
        "--data.init_args.teacher_cache FOLDER, which says where to.",
    )
    parser.add_argument(
        "--views", type=_positive, metavar="V", help="views of each image (default: trainer.max_epochs)"
    )
    parser.add_argument(
        "--verify", type=_positive, default=0, metavar="N", help="compute N random entries again, and compare them"
    )
    return parser.parse_known_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number
