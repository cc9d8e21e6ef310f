"""Reading a dataset of the benchmark in whichever layout it has."""

from collections.abc import Callable
from pathlib import Path

from kdpl.data.readers.aircraft import read_aircraft
from kdpl.data.readers.benchmark import BENCHMARKS, Layout, Location
from kdpl.data.readers.imagenet import read_class_folders, read_imagenet, read_numbered_folders
from kdpl.data.readers.split_file import read_split_file
from kdpl.data.splits import Splits

_READERS: dict[Layout, Callable[[Location], Splits]] = {
    "split_file": read_split_file,
    "aircraft": read_aircraft,
    "imagenet": read_imagenet,
    "class_folders": read_class_folders,
    "numbered_folders": read_numbered_folders,
}


def read_benchmark(name: str, root: str) -> Splits:
    """Read a dataset of the benchmark.

    Args:
        name: A key of ``BENCHMARKS``.
        root: The folder of all datasets, which holds the dataset's own.

    Raises:
        DataError: If something is missing or damaged; the message names the path and how to get the data.
    """
    location = Location(BENCHMARKS[name], Path(root).expanduser())
    location.require_folder(location.folder)
    return _READERS[location.benchmark.layout](location)
