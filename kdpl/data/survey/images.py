"""Survey of a user's images: sizes, bad files, corrected labels, and images that were not found."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from kdpl.data.class_mapping import read_class_mapping
from kdpl.data.decoding import Decoding, opened
from kdpl.data.parallel import in_parallel
from kdpl.data.readers.table import read_rows, split_cell
from kdpl.data.sampling import held_out_of
from kdpl.data.sources import content_of, digest_of_content
from kdpl.data.survey.found import FoundImage, in_one_cell
from kdpl.data.survey.views import is_drawn
from kdpl.errors import DataError, visible


def relabel(
    listed: Sequence[FoundImage],
    further: Sequence[FoundImage],
    table: Path,
    class_names: str | None = None,
    separator: str | None = None,
) -> tuple[list[FoundImage], list[FoundImage]]:
    """Apply labels that a user wrote into a table with the columns ``image`` and ``label``.

    A row's label replaces the label of its image; an empty label, or ``?`` with a ``separator``,
    leaves or makes it unlabelled. An unknown image is added for training if it has a label.

    Returns:
        Images of the dataset, including further images that now have a label, and the rest.
    """
    keys = {name for image in listed for name in image.classes}
    names = read_class_mapping(Path(class_names), keys, complete=False) if class_names else {}
    classes = sorted(keys | names.keys())
    if not classes:
        raise DataError(
            "--labels needs the classes: write a list of them, and give it as --class-names"
        )
    # a class may be written by its label or its name
    label_of = {named.name: key for key, named in names.items()} | {key: key for key in classes}
    table, written = table.absolute(), dict[str, str]()
    images = {image.path: image for image in (*listed, *further)}
    rows = read_rows(table, labeled=True, separator=separator)
    for number, (image, cell, *_) in enumerate(rows, start=1):
        # check the row
        source, problem = os.path.normpath(table.parent / image), None
        labels, old = split_cell(cell, separator), images.get(source)
        unknown = next((name for name in labels or () if name not in label_of), None)
        label = ""
        if labels is not None:
            label = in_one_cell([label_of.get(name, name) for name in sorted(labels)], separator)
        if unknown is not None:
            near = get_close_matches(unknown, label_of, n=1, cutoff=0)
            problem = f"has the label {visible(unknown)!r}, which is not a class"
            problem += f": write {visible(near[0])!r}, or another class"
            # a run writes its class names, possibly other than the folders' names
            problem += "" if names else ", or give the --class-names in which it is one"
        elif written.setdefault(source, label) != label:
            problem = f"gives {visible(image)} another label than a row before: keep one of the two"
        elif old and old.split != "train" and not label:
            what = f"leaves {visible(image)} of the {old.split} images without a label"
            problem = f"{what}: write one"
        if problem:
            raise DataError(f"row {number} of {table} {problem}")
        # apply it
        if old or label:
            old = old or FoundImage(source, "", "train")
            images[source] = replace(old, label=label, separator=separator)
    # all classes must still have an image
    used = {name for image in images.values() for name in image.classes}
    if used and (unused := sorted({*classes} - used)):
        raise DataError(
            f"with {table} no image has the label {visible(unused[0])!r}: label one of each class"
        )
    paths = {image.path for image in further}
    dataset = [image for image in images.values() if image.label or image.path not in paths]
    return dataset, [image for image in images.values() if not image.label and image.path in paths]


def overlooked(folder: Path, taken: Iterable[FoundImage]) -> list[str]:
    """List the files that ``find`` did not take, a line for each folder and file extension."""
    paths, counts = {image.path for image in taken}, Counter[tuple[str, str]]()
    for top, folders, files in os.walk(folder.absolute()):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        counts.update(
            (top, Path(name).suffix.lower())
            for name in files
            if not name.startswith(".") and os.path.join(top, name) not in paths  # noqa: PTH118
        )
    return [
        f"{count} {ending or 'files'} in {visible(top)}" for (top, ending), count in counts.items()
    ]


def inspect_images(images: Sequence[FoundImage], workers: int | None = None) -> list[FoundImage]:
    """Decode images on all cores with a progress bar; fill in size, digest and fault."""
    return list(in_parallel(_inspect, images, "looking", workers))


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


def _inspect(image: FoundImage) -> FoundImage:
    try:
        image.path.encode()  # as the table needs it
        content = content_of(image.path)
        with opened(image.path, content) as picture:
            rgb = Decoding().to_rgb(picture, f"image {image.path}")
        image = replace(image, size=rgb.size, drawn=is_drawn(rgb))
    except DataError as error:
        return replace(image, fault=str(error))
    except UnicodeEncodeError:
        return replace(
            image, fault=f"image {visible(image.path)} has a path that is not UTF-8: rename it"
        )
    return replace(image, digest=digest_of_content(content))
