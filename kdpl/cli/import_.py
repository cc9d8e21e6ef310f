"""``python -m kdpl import teacher|student FILE``: the authors' published checkpoints as run folders."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kdpl.cli.arguments import Parser


def import_(argv: Sequence[str]) -> int:
    """Turn a published checkpoint into what a finished ``fit`` would have left.

    Args:
        argv: Arguments after ``import``.

    Returns:
        0.

    Raises:
        KdplError: The file is damaged, or does not fit the settings.
    """
    options = _parser().parse_args(argv)
    from kdpl.benchmark.checkpoints.importing import import_published

    import_published(options.kind, Path(options.file), options.settings)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m kdpl import",
        allow_abbrev=False,
        description="Take a checkpoint that PromptKD's authors published over into a run's folder, as fit leaves it.",
        epilog="Example: python -m kdpl import teacher FILE --config configs/teacher/promptsrc_vit_l14.yaml "
        "--config configs/data/dtd.yaml --data.init_args.root ROOT --config configs/data/base_to_novel.yaml "
        "--out runs/dtd/teacher. A student needs --model.init_args.teacher RUN as well.",
    )
    parser.add_argument("kind", choices=("teacher", "student"), help="what the file holds")
    parser.add_argument("file", metavar="FILE", help="the checkpoint")
    parser.add_argument(
        "settings",
        metavar="SETTINGS",
        nargs=argparse.REMAINDER,
        help="--out FOLDER, --config FILE and all else that fit takes; nothing is trained, whatever they say",
    )
    return parser
