"""Which classes a run's config may name: a report of a stranger's run imports none of the stranger's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdpl.errors import ConfigError

_OWN = "kdpl."
_READ = ("model", "data")  # sections whose classes the report looks up or builds
_NAMING = ("class_path", "augmentation")  # keys whose text may name a class


def require_known_classes(config: dict[str, Any], file: Path) -> None:
    """Refuse a config that names classes other than kdpl's: naming one imports its module, which runs it.

    Args:
        config: The config of a fit, as it lies in a run's folder.
        file: Where it is, for the message.

    Raises:
        ConfigError: The first such class is named.
    """
    for section in _READ:
        for name in _named_classes(config.get(section)):
            if not name.startswith(_OWN):
                raise ConfigError(
                    f"config {file} names the class {name[:100]}, which is none of kdpl's and would be run: if the run "
                    "is your own, give --trust"
                )


def _named_classes(tree: Any) -> Iterator[str]:  # noqa: ANN401
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if key in _NAMING and isinstance(value, str) and "." in value:
            yield value
        yield from _named_classes(value)
