"""Survey of the user's own images: sizes, bad files, other labels, and what was not found."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import cast

from kdpl.data.decoding import Decoding, opened
from kdpl.data.names import unlisted
from kdpl.data.parallel import in_parallel
from kdpl.data.sampling import held_out_of
from kdpl.data.sources import content_of, digest_of_content, find_unlabeled
from kdpl.data.storage import is_image, is_url
from kdpl.errors import DataError, visible
from kdpl.survey.found import FoundImage, in_one_cell
from kdpl.tables.reader import read_rows, split_cell

# images that Pillow does not open
_FOREIGN = frozenset(
    {
        ".arw",
        ".cr2",
        ".dcm",
        ".dng",
        ".eps",
        ".heic",
        ".heif",
        ".jxl",
        ".nef",
        ".psd",
        ".raw",
        ".svg",
    }
)
_NEARLY = 16  # of 256 levels; 12 bits of data in values of 16 bits have no more


def find_further(where: Sequence[str], known: Iterable[FoundImage]) -> list[FoundImage]:
    """List unlabelled images of further places, without known ones; see ``find_unlabeled``."""
    sources = unlisted(find_unlabeled(where), (image.path for image in known))
    return [FoundImage(source, "", "train") for source in sources]


def relabel(
    images: Sequence[FoundImage],
    table: Path,
    named: Mapping[str, str],
    named_by_file: bool = False,
    separator: str | None = None,
) -> list[FoundImage]:
    """Apply labels that a user wrote into a table with the columns ``image`` and ``label``.

    The label of a row replaces that of its image; an empty one, or with a ``separator`` ``?``,
    leaves or makes it unlabelled. An image that is not among the ``images`` is added for training
    if it has a label.

    Args:
        images: The images.
        table: A .csv or .parquet file; relative paths begin at its folder.
        named: The classes: labels by what may be written for them, which is themselves or their
            names.
        named_by_file: Whether a file of class names gave their names.
        separator: Character between several labels of an image; None: each is of one class.

    Raises:
        DataError: It cannot be read, gives an image two labels, or names a class that there is not,
            or empties the label of a test or validation image.
    """
    table, number_of, written = (
        table.absolute(),
        {image.path: i for i, image in enumerate(images)},
        dict[str, str](),
    )
    merged = list(images)
    rows = read_rows(table, labeled=True, separator=separator)
    for number, (image, cell, *_) in enumerate(rows, start=1):
        source, fault = image if is_url(image) else os.path.normpath(table.parent / image), None
        own = split_cell(cell, separator)
        unknown = next((name for name in own or () if name not in named), None)
        label = (
            "" if own is None else in_one_cell([named.get(n, n) for n in sorted(own)], separator)
        )
        if unknown is not None:
            near = get_close_matches(unknown, named, n=1, cutoff=0)
            problem = f"has the label {visible(unknown)!r}, which is not a class"
            fault = f"{problem}: write {visible(near[0])!r}, or another class"
            # a run whose classes have other names than the folders writes those
            fault += "" if named_by_file else ", or give the --class-names in which it is one"
        elif written.setdefault(source, label) != label:
            fault = f"gives {visible(image)} another label than a row before: keep one of the two"
        elif source in number_of:
            old = merged[number_of[source]]
            if not label and old.split != "train":
                fault = (
                    f"leaves {visible(image)} of the {old.split} images without a label: write one"
                )
            merged[number_of[source]] = replace(old, label=label, separator=separator)
        elif label:
            number_of[source] = len(merged)
            merged.append(FoundImage(source, label, "train", separator=separator))
        if fault:
            raise DataError(f"row {number} of {table} {fault}")
    return merged


def overlooked(folder: Path, taken: Iterable[FoundImage]) -> list[str]:
    """List folders with images, and kinds of file, that ``find`` did not find, a line for each."""
    known, elsewhere, foreign = {image.path for image in taken}, Counter[str](), Counter[str]()
    empty: list[str] = []
    for top, folders, files in os.walk(folder.absolute()):
        empty += [] if folders or files else [top]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            ending = Path(name).suffix.lower()
            if ending in _FOREIGN:
                foreign[ending] += 1
            elif is_image(name) and os.path.join(top, name) not in known:  # noqa: PTH118
                elsewhere[top] += 1
    lines = [
        f"{_count(n, 'image')} in {visible(at)}, which is not a class folder"
        for at, n in elsewhere.items()
    ]
    lines += [f"folder {visible(top)}, which is empty" for top in empty]
    return lines + [
        f"{_count(n, f'{ending} file')}, which cannot be read: convert"
        for ending, n in foreign.items()
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def inspect_images(images: Sequence[FoundImage], workers: int | None = None) -> list[FoundImage]:
    """Decode images on all cores with a progress bar; returns them with size, digest and fault."""
    return list(in_parallel(_inspect, images, "looking", workers))


def set_aside(
    images: list[FoundImage], split: str, share: float, least: int = 2
) -> list[FoundImage]:
    """Move a share of each class's labelled training images to a split, always the same ones.

    Only classes with at least ``least`` of them take part, or all with several labels an image.

    One of them moves at least, and one stays; a group moves whole, see ``held_out_of``.
    """
    train = [image for image in images if image.label and image.split == "train"]
    sets = any(image.separator is not None for image in train)
    labels = ((image.path, image.classes if sets else image.label) for image in train)
    groups = {image.path: image.group for image in train if image.group}
    chosen = held_out_of(labels, share, groups, 1 if sets else least)
    return [replace(image, split=split) if image.path in chosen else image for image in images]


def _inspect(image: FoundImage) -> FoundImage:
    try:
        image.path.encode()  # for the table
        content = content_of(image.path)
        with opened(image.path, content) as picture:
            rgb = Decoding().to_rgb(picture, f"image {image.path}")
        # a pair for each colour
        extrema = cast(tuple[tuple[int, int], ...], rgb.getextrema())
        plain = all(high - low < _NEARLY for low, high in extrema)
        image = replace(image, size=rgb.size, plain=plain)
    except DataError as error:
        return replace(image, fault=str(error))
    except UnicodeEncodeError:
        return replace(
            image, fault=f"image {visible(image.path)} has a path that is not UTF-8: rename it"
        )
    return replace(image, digest=digest_of_content(content))
