"""``python -m kdpl report RUN``: the report of a run, made again from its folder."""

from collections.abc import Sequence
from pathlib import Path

from kdpl.cli.arguments import Parser, output_file
from kdpl.report import FILE
from kdpl.runtime.files import atomic_path


def report(argv: Sequence[str]) -> int:
    """Write a run's report, in the place of an earlier one.

    Args:
        argv: Arguments after ``report``.

    Returns:
        0.

    Raises:
        ConfigError: The folder is not one of a run or a stage, or its config names classes that are none of kdpl's.
    """
    parser = Parser(
        prog="python -m kdpl report",
        description="Write report.html: what was trained and how well, in one file that needs no other.",
    )
    parser.add_argument("run", metavar="RUN", help="the --out of run, or of a stage's fit")
    parser.add_argument("--out", metavar="FILE", help=f"file to write (default {FILE} in RUN)")
    parser.add_argument(
        "--trust",
        action="store_true",
        help="the run is your own: import whatever classes its configs name",
    )
    options = parser.parse_args(argv)
    folder = Path(options.run)
    out = output_file("--out", options.out) if options.out is not None else folder / FILE

    from kdpl.report.page import render
    from kdpl.report.run_folder import Run
    from kdpl.runtime.messages import quiet_libraries

    quiet_libraries()
    html = render(Run.find(folder, options.trust))
    with atomic_path(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    print(f"report: {out}")
    return 0
