"""``python -m kdpl export CLASSIFIER --format … --out FILE``: write a file that runs without kdpl, and check it."""

from collections.abc import Sequence

from kdpl.cli.arguments import Parser, output_file
from kdpl.deploy.export.formats import CALIBRATION_IMAGES, CHECKED_IMAGES, KINDS, require_fit


def export(argv: Sequence[str]) -> int:
    """Export a classifier and compare the file's answers with its own; a file that differs does not stay.

    Args:
        argv: Arguments after ``export``.

    Returns:
        0.

    Raises:
        KdplError: A setting does not fit, a package or image is missing, or the file's answers differ too much.
    """
    options = _parser().parse_args(argv)
    require_fit(options.format, output_file("--out", options.out), options.calibration)

    from kdpl.deploy.export.exporting import write_checked

    write_checked(options)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m kdpl export", description="Write a classifier as a file that runs without kdpl.")
    parser.add_argument("classifier", help="classifier folder of a student's run")
    parser.add_argument("--format", choices=tuple(KINDS), required=True, help="torch: a program of torch.export")
    parser.add_argument("--out", required=True, help="file to write, .onnx or .pt2")
    parser.add_argument("--input", choices=("uint8", "float"), default="uint8", help="bytes, or floats in 0..1")
    parser.add_argument(
        "--calibration", metavar="FOLDER", help=f"unlabelled images for 8 bits; {CALIBRATION_IMAGES} of them are used"
    )
    parser.add_argument(
        "--check",
        metavar="FOLDER",
        help=f"images that the answers are compared on, at most {CHECKED_IMAGES}; those of --calibration if not given",
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest difference of a logit in 32 bits (default 1e-4)"
    )
    parser.add_argument(
        "--agreement", type=float, default=0.98, help="smallest share of equal first guesses in 8 bits (default 0.98)"
    )
    return parser
