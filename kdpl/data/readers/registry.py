"""The datasets that kdpl knows, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kdpl.data.readers.benchmark import BENCHMARKS
from kdpl.data.readers.benchmark_reader import read_benchmark
from kdpl.data.readers.digits import read_digits
from kdpl.data.readers.folder import read_folder
from kdpl.data.readers.table import read_table
from kdpl.data.splits import Splits
from kdpl.errors import ConfigError


@dataclass(frozen=True)
class DatasetKind:
    """How a dataset is read.

    Attributes:
        read: Called with the given ones of the options below, by name.
        required: Options that must be given.
        optional: Options that may be given.
        own: Whether it is made of somebody's own images, which nobody has looked at yet.
    """

    read: Callable[..., Splits]
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    own: bool = False


_ROOT = frozenset({"root"})
_NAMING = frozenset({"unlabeled", "class_names", "class_text"})

DATASETS: dict[str, DatasetKind] = {
    "digits": DatasetKind(read_digits),
    "folder": DatasetKind(read_folder, required=_ROOT, optional=_NAMING, own=True),
    "table": DatasetKind(read_table, required=_ROOT, optional=_NAMING, own=True),
    **{name: DatasetKind(partial(read_benchmark, name), required=_ROOT) for name in BENCHMARKS},
}


def check_dataset(name: str, **options: Any) -> None:  # noqa: ANN401 - each option has a type of its own
    """Check that a dataset exists and takes the options that are not None.

    Raises:
        ConfigError: If the name is unknown, an option is missing, or one is given that the dataset does not take.
    """
    if name not in DATASETS:
        raise ConfigError(f"dataset {name!r} is unknown: choose one of {', '.join(sorted(DATASETS))}.")
    kind = DATASETS[name]
    for option, value in options.items():
        if value is None and option in kind.required:
            raise ConfigError(f"dataset {name!r} needs {option}: set it to where the dataset lies.")
        if value is not None and option not in kind.required | kind.optional:
            raise ConfigError(f"dataset {name!r} takes no {option}: remove {option}: {value}.")


def read_dataset(name: str, **options: Any) -> Splits:  # noqa: ANN401 - as above
    """Read a dataset.

    Args:
        name: A key of ``DATASETS``.
        options: What the dataset takes; None means not given.

    Raises:
        ConfigError: If the name and the options do not go together.
        DataError: If the dataset is missing or damaged.
    """
    check_dataset(name, **options)
    return DATASETS[name].read(**{option: value for option, value in options.items() if value is not None})
