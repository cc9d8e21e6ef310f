"""A file that gives folders readable class names: JSON ``{"n01440764": "tench"}``, or CSV lines ``n01440764,tench``."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from kdpl.errors import DataError


def read_class_mapping(path: Path, folders: Iterable[str]) -> dict[str, str]:
    """Read the names of class folders.

    Args:
        path: A ``.json`` file that holds one object of strings, or a ``.csv`` file of two columns, whose first line
            may be the heading ``folder,name``.
        folders: The class folders that the dataset has.

    Returns:
        Folder to name, for exactly those folders.

    Raises:
        DataError: If the file cannot be read, lacks a folder, names one that the dataset has not, or gives two
            folders the same name.
    """
    mapping: dict[str, str] = {}
    folder_of: dict[str, str] = {}
    for folder, name in _read_pairs(path):
        if folder in mapping:
            raise DataError(f"class names file {path} has folder {folder!r} twice: keep one line for each folder.")
        if name in folder_of:
            raise DataError(
                f"class names file {path} gives folders {folder_of[name]!r} and {folder!r} the same name {name!r}: "
                "every class needs a name of its own."
            )
        mapping[folder] = name
        folder_of[name] = folder
    expected = set(folders)
    for folder in sorted(expected - mapping.keys()):
        raise DataError(f"class names file {path} lacks folder {folder!r}: add it with its class name.")
    for folder in sorted(mapping.keys() - expected):
        raise DataError(
            f"class names file {path} names folder {folder!r}, which the dataset does not have: "
            "remove it or mend its spelling."
        )
    return mapping


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    readers = {".json": _read_json, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(f"class names file {path} must end in .json or .csv.")
    try:
        pairs = readers[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"class names file {path} does not exist: check class_names.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"class names file {path} cannot be read as {path.suffix[1:].upper()}: {error}.") from error
    for folder, name in pairs:
        if not name:
            raise DataError(f"class names file {path} gives folder {folder!r} an empty name: write its class name.")
    return pairs


def _read_json(text: str) -> list[tuple[str, str]]:
    # as pairs, since a plain dict would silently keep the last of two equal keys
    pairs = json.loads(text, object_pairs_hook=list)
    if not text.lstrip().startswith("{") or not all(isinstance(name, str) for _, name in pairs):
        raise ValueError("expected one object that maps folder to name")
    return [(folder, name.strip()) for folder, name in pairs]


def _read_csv(text: str) -> list[tuple[str, str]]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise ValueError(f"row {number} has {len(row)} columns where folder and name are expected")
    return [(folder, name) for folder, name in rows if (folder.lower(), name.lower()) != ("folder", "name")]
