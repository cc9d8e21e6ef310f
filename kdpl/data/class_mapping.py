"""Names of classes and their texts for the text tower: a user's file, and a text around the name.

The file is JSON, ``{"n01440764": "tench"}`` or ``{"n01440764": {"name": "tench", "text": "tench, a
fish"}}``, or CSV with lines ``n01440764,tench``, or with the heading ``label,name,text`` lines
``n01440764,tench,"tench, a fish"``, or a ``.txt`` list with a name on each line. A class may have
several texts: a list in JSON, or further columns ``text``.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kdpl.errors import ConfigError, DataError
from kdpl.runtime.class_names import ClassText, composed
from kdpl.runtime.files import read_text


class ClassName(NamedTuple):
    """Name of a class, and the text or texts for the text tower; None: the name itself."""

    name: str
    text: ClassText | None = None

    def composed(self) -> "ClassName":
        """Name and texts in Unicode's composed form."""
        if isinstance(self.text, tuple):
            return ClassName(composed(self.name), tuple(map(composed, self.text)))
        return ClassName(composed(self.name), self.text and composed(self.text))


def name_classes(
    keys: Sequence[str], class_names: str | None, class_text: str | None
) -> tuple[tuple[str, ...], tuple[ClassText, ...] | None]:
    """Return class names, and their texts for the text tower, None if these are the names.

    Args:
        keys: Their folders or labels.
        class_names: File with their names and texts, see ``read_class_mapping``; None: the keys are
            their names.
        class_text: Text around each class's name, or its texts where the file has some; ConfigError
            unless it has one ``{}`` for it.
    """
    if class_text is not None and class_text.count("{}") != 1:
        raise ConfigError(
            f"class_text is {class_text!r}, expected a text with one {{}}: give "
            f"'{{}}, a type of pet'"
        )
    given = read_class_mapping(Path(class_names).expanduser(), keys) if class_names else {}
    named = [given.get(key, ClassName(key)) for key in keys]
    names = tuple(each.name for each in named)
    if class_text is None and all(each.text is None for each in named):
        return names, None
    around = _without_stop(composed(class_text or "{}"))

    def read(named: ClassName) -> ClassText:
        if isinstance(named.text, tuple):
            return tuple(around.replace("{}", _without_stop(text)) for text in named.text)
        return around.replace("{}", _without_stop(named.text) if named.text else named.name)

    return names, tuple(map(read, named))


def list_classes(class_names: str, used: Iterable[str]) -> list[str]:
    """List the classes of a file, in its order, for a dataset whose training images have no labels.

    DataError if it lacks a class that is ``used``; otherwise see ``read_class_mapping``.
    """
    return [*read_class_mapping(Path(class_names).expanduser(), used, complete=False)]


def _without_stop(text: str) -> str:
    # it comes with the prompt
    return text.strip().rstrip(".")


def read_class_mapping(
    path: Path, keys: Iterable[str], complete: bool = True
) -> dict[str, ClassName]:
    """Read the names of classes from a ``.txt``, ``.json`` or ``.csv`` file, in its order.

    ``keys`` are the dataset's class folders or labels: all of them, or with ``complete: False``
    those that it has. DataError if the file cannot be read, lacks a class, names another or none,
    or gives two classes the same name.
    """
    readers = {".json": _read_json, ".csv": _read_csv, ".txt": _read_list}
    kind = path.suffix.lower()
    if kind not in readers:
        raise DataError(
            f"class names file {path} is of an unknown kind: give a .txt, .json or .csv file"
        )
    try:
        given = readers[kind](read_text(path, "class names file"))
        mapping = _unique([(composed(key), named.composed()) for key, named in given.items()])
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(
            f"class names file {path} cannot be read as {kind[1:].upper()}: {error}"
        ) from error
    expected = set(keys)
    if differing := sorted(mapping.keys() ^ expected if complete else expected - mapping.keys()):
        fault = (
            "names class {!r}, which the dataset does not have"
            if differing[0] in mapping
            else "lacks class {!r}"
        )
        remedy = "name the dataset's classes, each once"
        if kind == ".txt" and expected:
            # a list cannot say which class a new name is of
            example = (
                f"{min(expected)},"
                f"{next((key for key in mapping if key not in expected), 'its name')}"
            )
            remedy += f", and give them other names by a .csv file with lines such as {example}"
        raise DataError(f"class names file {path} {fault.format(differing[0])}: {remedy}")
    if not mapping:
        raise DataError(
            f"class names file {path} names no class: write a name on each line of a .txt file"
        )
    key_of: dict[str, str] = {}
    for key, named in mapping.items():
        if not named.name:
            raise DataError(
                f"class names file {path} gives class {key!r} an empty name: write its class name"
            )
        if (other := key_of.setdefault(named.name, key)) != key:
            problem = f"gives classes {other!r} and {key!r} the same name {named.name!r}"
            raise DataError(f"class names file {path} {problem}: rename one")
    return mapping


def _read_json(text: str) -> dict[str, ClassName]:
    content = json.loads(text, object_pairs_hook=_unique)
    mapping = {}
    for key, value in content.items() if isinstance(content, dict) else [("", None)]:
        fields: dict[str, Any] = value if isinstance(value, dict) else {"name": value}
        name, texts = fields.get("name", ""), fields.get("text", [])
        texts = texts if isinstance(texts, list) else [texts]
        if not fields.keys() <= {"name", "text"} or not all(
            isinstance(each, str) for each in [name, *texts]
        ):
            raise ValueError(
                "expected one object that maps each class to its name, or to its name "
                "and text or texts"
            )
        mapping[key] = ClassName(name.strip(), _one_or_several(texts))
    return mapping


def _read_csv(text: str) -> dict[str, ClassName]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    heading = [cell.lower() for cell in rows[0]] if rows else []
    has_heading = (
        heading[:1] in (["folder"], ["label"])
        and heading[1:2] == ["name"]
        and {*heading[2:]} <= {"text"}
    )
    # a third column is a text where a heading says so, and otherwise mostly a name with a comma in
    # it
    columns = len(heading) if has_heading else 2
    for number, row in enumerate(rows, start=1):
        if len(row) < columns or any(row[columns:]):
            texts = {2: "class and name", 3: "class, name and text"}
            expected = texts.get(columns, f"class, name and {columns - 2} texts")
            problem = f"row {number} has {len(row)} columns where {expected} are expected"
            raise ValueError(
                f"{problem}: put a value with a comma in quotes" if len(row) > columns else problem
            )
    return _unique(
        [(key, ClassName(name, _one_or_several(texts))) for key, name, *texts in rows[has_heading:]]
    )


def _one_or_several(texts: Iterable[str]) -> ClassText | None:
    given = tuple(text.strip() for text in texts if text.strip())
    return given if len(given) > 1 else next(iter(given), None)


def _read_list(text: str) -> dict[str, ClassName]:
    return _unique(
        [(line.strip(), ClassName(line.strip())) for line in text.splitlines() if line.strip()]
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict of pairs; ValueError if a key occurs twice, as a dict would keep the last."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"it has {key!r} twice, keep one")
    return dict(pairs)
