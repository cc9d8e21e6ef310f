"""Survey of a user's images, for ``init``: classes, splits, sizes, bad files, copies, views."""

import re
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from kdpl.data.inspection import inspect
from kdpl.data.layout import Part, layout_of
from kdpl.data.names import Names, unlisted
from kdpl.data.paths import find_images, is_image, is_shard, walk
from kdpl.data.readers.table import HELD_OUT, Table, split_cell
from kdpl.data.sampling import held_out_of
from kdpl.errors import DataError, visible
from kdpl.runtime.advice import absolute
from kdpl.runtime.class_names import composed

_KEPT_FIRST = {"test": 0, HELD_OUT: 0, "val": 1, "train": 2}

_NUMBERS = "zero|one|two|three|four|five|six|seven|eight|nine|ten"
# whole names such as 7, seven, b, letter b, upper-case B, left arrow, right hand
_NOT_MIRRORED = re.compile(
    rf"(.*\b(digit|number|letter|character|upper.?case|lower.?case)\b.*)|\d|\w|{_NUMBERS}"
    r"|.*\b(left|right)\b.*",
    re.IGNORECASE,
)
_MOST = 0.5  # least share of the classes, or of the images, that decides


@dataclass(frozen=True)
class FoundImage:
    """Image found: absolute path, or name in a shard; ``label`` is empty if it has none.

    With a ``separator``, the label is a list of classes, or the separator alone for no class.
    ``split`` is ``train``, ``val``, ``test``, or ``held_out`` for test images set aside at random.
    Inspecting it fills in the fields of ``Inspected``; a copy has a ``problem``, too. A table may
    give it a ``group``. ``near`` is the path of the first labelled image of which it is a
    near-copy. Images with too few details are not ``compared`` for that.
    """

    path: str
    label: str
    split: str
    size: tuple[int, int] | None = None
    drawn: bool = False
    digest: str = ""
    problem: str | None = None
    separator: str | None = None
    group: str = ""
    near: str = ""
    compared: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that it is labelled with."""
        return (split_cell(self.label, self.separator) or ()) if self.label else ()


def find(
    path: Path, class_names: str | None = None, separator: str | None = None
) -> list[FoundImage]:
    """List the images of a folder or table without opening them.

    ``layout_of`` says what the folders in a folder are. DataError if it does not exist or is
    damaged, or no class has a training image, unless a file ``class_names`` lists the classes: then
    all images of a folder without ``unlabeled`` are taken. With a ``separator``, a table's labels
    are lists of classes.
    """
    if path.is_file() or (path.suffix.lower() == ".csv" and not path.is_dir()):
        table = absolute(path)
        images = _in_table(table, class_names, separator)
        problem = f"table {table} has no labelled training image: label a few images of each class"
    elif separator is not None:
        raise DataError(
            f"{path} is no table, and only a table has several labels for an image: write one with "
            "the columns image and label"
        )
    elif not path.is_dir():
        raise DataError(f"folder {path} does not exist: give the folder of your images")
    else:
        folder = absolute(path)
        parts = layout_of(folder, class_names)
        images = _in_folder(folder, parts)
        top = folder / "train" if any(part.top != folder for part in parts) else folder
        problem = (
            f"folder {folder} has no images in folders of classes: put them into {top}/<class>/"
        )
    if not class_names and not any(image.label and image.split == "train" for image in images):
        raise DataError(
            f"{problem}, or write a list of the classes and give it as --class-names to use no "
            "labels"
        )
    return images


def _in_folder(folder: Path, parts: Sequence[Part]) -> list[FoundImage]:
    images = [
        FoundImage(path, composed(inner.name) if part.labeled else "", part.split)
        for part in parts
        for inner in part.folders
        for path in find_images(inner)
    ]
    if any(image.split == "train" for image in images):
        return images
    # no training images: take all others as unlabelled
    labeled = {image.path for image in images}
    further = (path for path in find_images(folder) if path not in labeled)
    return images + [FoundImage(path, "", "train") for path in further]


class PassedOver(NamedTuple):
    """What is in a folder and used nowhere.

    Attributes:
        images: Where each image is, and why it is not used, by path.
        empty_folders: Names of folders like those of classes, without images.
        files: Files of other kinds.
    """

    images: dict[str, str]
    empty_folders: list[str]
    files: list[str]


def find_passed_over(
    source: Path,
    class_names: str | None,
    classes: Container[str],
    used_images: Iterable[str],
    used_files: Container[str | None],
) -> PassedOver:
    """Find what a survey of a folder does not use; of a table, nothing."""
    if not source.is_dir():
        return PassedOver({}, [], [])
    folder = absolute(source)
    parts, files = layout_of(folder, class_names), [*walk(folder, lambda _: True)]
    tops, images = {folder, *(part.top for part in parts)}, dict[str, str]()
    for image in map(Path, unlisted(Names.of(filter(is_image, files)), used_images)):
        # in the top or in a split, the image itself or the folder that it is in
        inner = next(path for path in (image, *image.parents) if path.parent in tops)
        where, why = inner, "which is not a split or unlabeled beside the splits"
        if inner == image:
            where, why = inner.parent, "outside its folders of classes"
        images[str(image)] = f"in {where.relative_to(folder.parent)}, {why}"
    empty = [
        path.name
        for part in parts
        for path in part.folders
        if composed(path.name) not in classes and not any(walk(path, _is_used))
    ]
    return PassedOver(
        images, empty, [path for path in files if not (_is_used(path) or path in used_files)]
    )


def _is_used(path: str) -> bool:
    return is_image(path) or is_shard(path)


def _in_table(table: Path, class_names: str | None, separator: str | None) -> list[FoundImage]:
    mark = separator or ""
    images = [
        FoundImage(
            row.source,
            "" if row.classes is None else mark.join(sorted(row.classes)) or mark,
            row.split,
            separator=separator,
            group="" if row.classes is None else row.group,
        )
        for row in Table(str(table), class_names=class_names, label_separator=separator).rows()
    ]
    # training images first, and unlabelled ones last
    return sorted(images, key=lambda image: (not image.label, -_KEPT_FIRST[image.split]))


def inspect_images(images: Sequence[FoundImage], workers: int | None = None) -> list[FoundImage]:
    """Decode images on all cores with a progress bar; fill in what that shows."""
    # imports torch, and a survey of nothing does without
    from kdpl.data.near_copies import near_copies

    # near-copies are of labelled images, those of test images first
    order = sorted(range(len(images)), key=lambda number: _precedence(images[number]))
    paths = [images[number].path for number in order]
    inspected = inspect(paths, "looking", workers=workers, drawings=True, pictures=True)
    measured = sum(bool(image.label) for image in images)
    compared = near_copies(inspected, lambda result: result.picture, measured)
    looked_at = dict[int, FoundImage]()
    for number, (result, first) in zip(order, compared, strict=True):
        image, values = images[number], result._asdict()
        is_compared = bool(values.pop("picture"))
        try:
            image.path.encode()  # as the table needs it
        except UnicodeEncodeError:
            values["problem"] = (
                f"image {visible(image.path)} has a path that is not UTF-8: rename it"
            )
        near = "" if first is None else paths[first]
        looked_at[number] = replace(image, **values, near=near, compared=is_compared)
    return [looked_at[number] for number in range(len(images))]


def leave_out(images: Sequence[FoundImage]) -> tuple[list[FoundImage], list[FoundImage]]:
    """Divide inspected images into usable ones, and those with a problem, which copies get too.

    Of byte-equal images, test images are kept first, then val, then train. Near-copies of test and
    val images in other splits are left out; labelled ones in one split become a group.
    """
    usable, left_out = list[FoundImage](), [image for image in images if image.problem is not None]
    readable = [image for image in images if image.problem is None]
    by_path = {image.path: image for image in readable}
    first: dict[str, FoundImage] = {}
    groups = dict[str, str]()
    for image in sorted(readable, key=_precedence):
        first.setdefault(image.digest, image)
        near = by_path.get(image.near)
        if near and image.label and near.split == image.split and not image.group:
            group = near.group or groups.setdefault(near.path, near.path)
            groups[image.path] = group
    for image in readable:
        kept, kind = first[image.digest], "copy"
        if kept is image and image.near in by_path and by_path[image.near].split != image.split:
            kept, kind = by_path[image.near], "near-copy"
        if kept is image:
            usable.append(replace(image, group=image.group or groups.get(image.path, "")))
            continue
        other = f", of class {visible(kept.label)}" if image.label not in ("", kept.label) else ""
        copy = f"{image.path} is a {kind} of {kept.path} ({kept.split}{other})"
        left_out.append(replace(image, problem=copy))
    return usable, left_out


def _precedence(image: FoundImage) -> tuple[int, bool]:
    return _KEPT_FIRST[image.split], not image.label


def set_aside(
    images: list[FoundImage], split: str, share: float, least: int = 2
) -> list[FoundImage]:
    """Move a share of each class's labelled training images to a split, always the same images.

    Only classes with at least ``least`` images take part, or all with several labels an image.
    At least one image moves, and one stays; a group moves as a whole, see ``held_out_of``.
    """
    train = [image for image in images if image.label and image.split == "train"]
    sets = any(image.separator is not None for image in train)
    labels = ((image.path, image.classes if sets else image.label) for image in train)
    groups = {image.path: image.group for image in train if image.group}
    chosen = held_out_of(labels, share, groups, 1 if sets else least)
    return [replace(image, split=split) if image.path in chosen else image for image in images]


def views_to_choose(names: Collection[str], images: Sequence[FoundImage]) -> str | None:
    """Return why images must not be mirrored or closely cropped, or None if they may be."""
    of_names = sum(bool(_NOT_MIRRORED.fullmatch(name)) for name in names)
    if of_names > _MOST * len(names):
        return "by their names the classes are digits, letters, or left and right"
    if sum(image.drawn for image in images) > _MOST * len(images):
        return "most images are grey on a plain ground, like written characters"
    return None
