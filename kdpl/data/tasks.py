"""The task that a dataset's labels are for, by name; plugins bring further ones.

Not in ``kdpl.tasks``, which knows nothing of what is installed.
"""

from typing import Any

from kdpl.errors import ConfigError
from kdpl.runtime import plugins
from kdpl.tasks import MULTI_CLASS, Task


def build_task(name: str, **settings: Any) -> Task:
    """Build a task: ``multiclass``, or a plugin's, with its settings."""
    if name == MULTI_CLASS.name:
        return MULTI_CLASS
    kinds = plugins.load_all("tasks")
    if name not in kinds:
        known = ", ".join([MULTI_CLASS.name, *kinds])
        raise ConfigError(
            f"task {name!r} is not installed, which these labels are for: install its package, or "
            f"use labels for {known}"
        )
    task: Task = kinds[name](**settings)
    return task
