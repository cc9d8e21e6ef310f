"""The commands of ``python -m kdpl``, one file each; none is imported before it is called.

Each returns its exit code, and raises a ``KdplError`` for what the user can fix.
"""

STAGES = ("fit", "validate", "test")
"""The commands of LightningCLI, which parse their arguments by themselves."""

COMMANDS = {
    "init": "kdpl.cli.init:init",
    "run": "kdpl.cli.run:run",
    **dict.fromkeys(STAGES, "kdpl.cli.fit:run_command"),
    "predict": "kdpl.cli.predict:predict",
    "demo": "kdpl.cli.demo:demo",
    "cache": "kdpl.cli.cache:cache",
    "export": "kdpl.cli.export:export",
    "class-vectors": "kdpl.cli.class_vectors:class_vectors",
    "benchmark": "kdpl.cli.benchmark:benchmark",
    "table": "kdpl.cli.table:table",
    "report": "kdpl.cli.report:report",
    "data": "kdpl.cli.data:data",
    "import": "kdpl.cli.import_:import_",
    "completion": "kdpl.cli.completion:completion",
}
"""Where each command is."""
