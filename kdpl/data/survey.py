"""What is in somebody's own images, in a folder or a table: classes, splits, sizes, bad files, copies."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdpl.data.decoding import open_image
from kdpl.data.parallel import in_parallel
from kdpl.data.readers.table import HELD_OUT, read_table
from kdpl.data.shards import ShardImage
from kdpl.data.sources import content_of, find_unlabeled
from kdpl.data.splits import Record
from kdpl.data.storage import find_images, is_image, is_url, places
from kdpl.errors import DataError, reason, visible

# what people call the folders of splits
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_UNLABELED = ("unlabeled", "unlabelled")
# images, but none that Pillow opens
_FOREIGN = frozenset({".arw", ".cr2", ".dcm", ".dng", ".eps", ".heic", ".heif", ".jxl", ".nef", ".psd", ".raw", ".svg"})


@dataclass(frozen=True)
class Found:
    """An image that was found.

    Attributes:
        path: The file, absolute; a URL; or where it lies in a shard.
        label: Its class; empty for an unlabelled image.
        split: ``train``, ``val``, ``test``, or ``held_out`` of test images that were set aside by chance.
        size: Width and height; None before it was decoded.
        digest: Of the file's bytes; empty before it was read.
        fault: Why it cannot be used; None if it can.
    """

    path: str
    label: str
    split: str
    size: tuple[int, int] | None = None
    digest: str = ""
    fault: str | None = None


def find(folder: Path) -> list[Found]:
    """List the images of a folder by where they lie; nothing is opened.

    Understood are ``train/<class>/…`` with ``val`` and ``test`` likewise, and ``<class>/…`` without splits; in either a
    folder ``unlabeled``, beside the classes or the splits, holds images without labels.

    Raises:
        DataError: The folder does not exist, or no class has an image.
    """
    if not folder.is_dir():
        raise DataError(f"folder {folder} does not exist: give the folder of your images.")
    folder = folder.absolute()
    parts = [(split, folder / name) for name, split in _SPLITS.items() if (folder / name).is_dir()]
    found = [image for split, top in parts or [("train", folder)] for image in _by_class(top, split)]
    beside = dict.fromkeys([folder, *(top for split, top in parts if split == "train")])
    found += [Found(path, "", "train") for top in beside for name in _UNLABELED for path in _images(top / name)]
    if not any(image.label and image.split == "train" for image in found):
        raise DataError(
            f"folder {folder} has no images in folders of classes: put them into {folder}/<class>/ or "
            f"{folder}/train/<class>/."
        )
    return found


def overlooked(folder: Path, found: Iterable[Found]) -> list[str]:
    """Say, in a line each, which images of a folder were not found by ``find``: where they lie, or what they are."""
    taken, elsewhere, foreign = {image.path for image in found}, Counter[str](), Counter[str]()
    for top, folders, files in os.walk(folder.absolute()):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            ending = Path(name).suffix.lower()
            if ending in _FOREIGN:
                foreign[ending] += 1
            elif is_image(name) and os.path.join(top, name) not in taken:  # noqa: PTH118
                elsewhere[top] += 1
    lines = [f"{count} images in {visible(top)}, which is no folder of a class" for top, count in elsewhere.items()]
    return lines + [f"{count} {ending} files, which cannot be read: convert them" for ending, count in foreign.items()]


def find_in_table(table: Path) -> list[Found]:
    """List the images of a ``.csv`` or ``.parquet`` table, see ``read_table``; nothing is opened.

    Raises:
        ConfigError: It is a Parquet file, and pyarrow is not installed.
        DataError: The table is missing or says something that cannot be, or no class has a training image.
    """
    splits = read_table(str(table.absolute()))
    names = splits.class_names
    test = HELD_OUT if splits.held_out else "test"
    parts: Mapping[str, Sequence[Record]] = {"train": splits.train, "val": splits.val, test: splits.test}
    found = [Found(source, names[label], split) for split, records in parts.items() for source, label in records]
    found += [Found(source, "", "train") for source in splits.unlabeled or ()]
    if not splits.train:
        raise DataError(
            f"table {table} has no labelled training image: fill in the column label for a few images a class."
        )
    return found


def find_further(where: Sequence[str], known: Iterable[Found]) -> list[Found]:
    """List unlabelled images of further places, see ``find_unlabeled``, less those that are known already.

    Raises:
        ConfigError: A URL is of a kind that cannot be opened.
        DataError: Something is missing, damaged or cannot be reached, or there are no images.
    """
    there = frozenset(places(image.path for image in known))
    found = find_unlabeled(where)
    return [Found(source, "", "train") for source, at in zip(found, places(found), strict=True) if at not in there]


def _by_class(top: Path, split: str) -> Iterator[Found]:
    for folder in sorted(path for path in top.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if folder.name not in _UNLABELED:
            yield from (Found(path, folder.name, split) for path in _images(folder))


def _images(folder: Path) -> list[str]:
    return find_images(folder) if folder.is_dir() else []


def look(images: list[Found], workers: int | None = None) -> list[Found]:
    """Decode every image, on all cores, under a progress bar; gives them with size, digest and fault."""
    return list(in_parallel(_look, images, "looking", workers))


def _look(image: Found) -> Found:
    distant = isinstance(image.path, ShardImage) or is_url(image.path)
    try:
        image.path.encode()  # for the table
        content = content_of(image.path) if distant else None
        size = open_image(image.path, content).size
        digest = hashlib.blake2b(content or content_of(image.path), digest_size=16).hexdigest()
    except DataError as error:
        return replace(image, fault=str(error))
    except UnicodeEncodeError:
        return replace(image, fault=f"image {visible(image.path)} has a path that is no UTF-8: rename it.")
    except OSError as error:
        return replace(image, fault=f"image {image.path} cannot be read ({reason(error)}): check its permissions.")
    return replace(image, size=size, digest=digest)


def leave_out_copies(images: list[Found]) -> tuple[list[Found], list[tuple[Found, Found]]]:
    """Leave out images whose very bytes stand elsewhere: a test image stays, before one of val, before one of train.

    Returns:
        The images that stay, in their order, and of each that does not, it and the one that stays in its place.
    """
    rank = {"test": 0, HELD_OUT: 0, "val": 1, "train": 2}
    first: dict[str, Found] = {}
    for image in sorted(images, key=lambda each: (rank[each.split], not each.label)):
        first.setdefault(image.digest, image)
    copies = [(image, first[image.digest]) for image in images if first[image.digest] is not image]
    return [image for image in images if first[image.digest] is image], copies
