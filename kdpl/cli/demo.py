"""``python -m kdpl demo CLASSIFIER``: try a finished classifier in the browser."""

import os
import tempfile
from collections.abc import Sequence

from kdpl.cli.arguments import Parser
from kdpl.deploy.demo.address import free_port, stay_local
from kdpl.errors import ConfigError

_PORTS = range(7860, 7960)


def demo(argv: Sequence[str]) -> int:
    """Serve the page until Ctrl-C.

    Args:
        argv: Arguments after ``demo``.

    Returns:
        0, after Ctrl-C.

    Raises:
        KdplError: The classifier, teacher or an example is missing or damaged, they do not fit, gradio is not
            installed, or the address cannot be had.
    """
    options = _parser().parse_args(argv)
    if options.top_k < 1:
        raise ConfigError(f"--top-k is {options.top_k}, expected 1 or more: give another number")
    port = free_port(options.host, _PORTS if options.port is None else [options.port])
    # a folder of its own for what is uploaded, so that nothing of it stays
    with tempfile.TemporaryDirectory(prefix="kdpl-demo-", ignore_cleanup_errors=True) as uploads:
        # gradio reads these when it is imported
        os.environ.update(GRADIO_TEMP_DIR=uploads, GRADIO_ANALYTICS_ENABLED="False", **stay_local(options.host))
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise ConfigError("the demo needs gradio: pip install 'kdpl[demo]'") from error
        from kdpl.deploy.demo.page import build, serve
        from kdpl.deploy.demo.visit import Demo, find_examples
        from kdpl.runtime.messages import quiet_libraries

        quiet_libraries()
        loaded = Demo.load(options.classifier, options.add_classes, options.teacher, options.top_k)
        examples = find_examples(options.examples)
        serve(build(loaded, examples), options.host, port, show=not options.no_browser)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m kdpl demo",
        description="Try a classifier in the browser: a page that says what is in the images dropped on it. It is "
        "served by this machine alone, needs no network, and keeps no image.",
    )
    parser.add_argument("classifier", help="classifier folder of a student's run")
    parser.add_argument(
        "--teacher", metavar="RUN", help="run folder of its teacher, which lets visitors type further class names"
    )
    parser.add_argument(
        "--add-classes", metavar="FILE", help="class vectors of further classes, which the class-vectors command wrote"
    )
    parser.add_argument(
        "--examples", nargs="+", default=[], metavar="IMAGES", help="image files and folders to pick examples from"
    )
    parser.add_argument("--top-k", type=int, default=5, help="guesses for each image (default 5)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets the network in")
    parser.add_argument(
        "--port", type=int, help=f"port to listen on (default: the first free one from {_PORTS.start} on; 0: any)"
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    return parser
