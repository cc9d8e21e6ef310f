"""What the steps of ``run`` need, imported once by the process that all of them start from."""

from kdpl.runtime.imports import uncollected

with uncollected():
    import kdpl.cli.fit
    import kdpl.data.datamodule
    import kdpl.student
    import kdpl.teacher  # noqa: F401
