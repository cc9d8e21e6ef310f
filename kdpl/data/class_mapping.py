"""Class names and their texts for the text tower: a user's file, and a text around the name.

The file is a CSV with lines ``n01440764,tench`` or, below the heading ``label,name,text``, lines
``n01440764,tench,"tench, a fish"``; further columns ``text`` give a class several texts. It may
also be a ``.txt`` list with a name on each line.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kdpl.errors import ConfigError, DataError
from kdpl.runtime.class_names import ClassText, composed
from kdpl.runtime.files import lines_of, read_cells, read_text


class ClassName(NamedTuple):
    """Name of a class, and its texts for the text tower; without any, it is the name itself."""

    name: str
    texts: tuple[str, ...] = ()


def name_classes(
    keys: Sequence[str], class_names: str | None, class_text: str | None
) -> tuple[tuple[str, ...], tuple[ClassText, ...] | None]:
    """Return class names, and their texts for the text tower; None if the texts are the names.

    Args:
        keys: Folders or labels of the classes.
        class_names: File with names and texts, see ``read_class_mapping``; None: the keys are
            the names.
        class_text: Text around each class's name, or around its texts if the file has some;
            ConfigError unless it contains one ``{}``.
    """
    if class_text is not None and class_text.count("{}") != 1:
        raise ConfigError(
            f"classes.text is {class_text!r}, expected a text with one {{}}: give "
            f"'{{}}, a type of pet'"
        )
    mapping = read_class_mapping(Path(class_names), keys) if class_names else {}
    classes = [mapping.get(key, ClassName(key)) for key in keys]
    names = tuple(named.name for named in classes)
    if class_text is None and not any(named.texts for named in classes):
        return names, None
    # put the text around each name, or around each of its texts
    around = _without_stop(composed(class_text or "{}"))
    texts = (tuple(map(_without_stop, named.texts)) or (named.name,) for named in classes)
    read = [tuple(around.replace("{}", text) for text in of_one) for of_one in texts]
    return names, tuple(of_one if len(of_one) > 1 else of_one[0] for of_one in read)


def _without_stop(text: str) -> str:
    # the prompt adds the full stop
    return text.strip().rstrip(".")


def read_class_mapping(
    path: Path, keys: Iterable[str], complete: bool = True, otherwise: str = ""
) -> dict[str, ClassName]:
    """Read class names from a ``.txt`` or ``.csv`` file, in its order, in composed form.

    ``keys`` are the dataset's class folders or labels: all of them, or only some with
    ``complete=False``. DataError if the file cannot be read, lacks a class, names another or none,
    or gives two classes the same name. ``otherwise`` is a second remedy for a file that names none
    of the keys.
    """
    path = path.expanduser()
    kind = path.suffix.lower()
    if kind not in (".csv", ".txt"):
        raise DataError(f"class names file {path} is of an unknown kind: give a .txt or .csv file")
    if kind == ".csv":
        rows = _read_csv(path)
    else:
        names = lines_of(composed(read_text(path, "class names file")))
        rows = [(name, ClassName(name)) for name in names]
    # each class and each name may occur once
    for values in ([key for key, _ in rows], [named.name for _, named in rows]):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice or "" in values:
            problem = f"has {twice[0]!r} twice" if twice else "has an empty name"
            raise DataError(f"class names file {path} {problem}: give each class one name")
    mapping = dict(rows)
    # the keys must be the dataset's classes
    expected = set(keys)
    missing = sorted(expected - mapping.keys())
    foreign = sorted(mapping.keys() - expected) if complete else []
    if missing or foreign:
        problems = [f"lacks class {key!r}" for key in missing[:1]]
        problems += [f"names class {key!r}, which the dataset does not have" for key in foreign[:1]]
        example = min(missing or expected, default="LABEL")
        second = f", or {otherwise}" if otherwise and expected.isdisjoint(mapping) else ""
        raise DataError(
            f"class names file {path} {' and '.join(problems)}: name each class of the dataset "
            f"once, by lines such as {example},NAME in a .csv file{second}"
        )
    if not mapping:
        raise DataError(
            f"class names file {path} names no class: write a name on each line of a .txt file"
        )
    return mapping


def _read_csv(path: Path) -> list[tuple[str, ClassName]]:
    rows = [[*map(composed, cells)] for _, cells in read_cells(path, "class names file")]
    heading = [cell.lower() for cell in rows[0]] if rows else []
    has_heading = heading[:2] in (["folder", "name"], ["label", "name"])
    # without a heading, a third column is mostly a name with an unquoted comma
    columns = len(heading) if has_heading and {*heading[2:]} == {"text"} else 2
    named = []
    for number, (key, *row) in enumerate(rows, start=1):
        if len(row) < columns - 1 or any(row[columns - 1 :]):
            raise DataError(
                f"class names file {path} cannot be read as CSV: row {number} has {len(row) + 1} "
                f"columns, expected {columns}: put a value with a comma in quotes"
            )
        name, *texts = row
        named.append((key, ClassName(name, tuple(filter(None, texts)))))
    return named[has_heading:]
