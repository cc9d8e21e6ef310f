"""Names of millions of images: text and numbers in arrays, without a Python object per image."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

ROW = np.dtype(
    [("start", "<i8"), ("length", "<i4"), ("folder", "<i4"), ("offset", "<i8"), ("size", "<i8")]
)
"""Numbers of an image: start and length of its name in the text, its folder, its bytes in a shard.

``offset``, above 0, and ``size`` are the bytes to read for the image.
"""

Indices = npt.NDArray[np.int64]

_CHUNK = 2**14


class ShardImage(str):
    """Image in a ``shard``, as ``SHARD/member``: ``size`` bytes from ``offset`` on."""

    __slots__ = ("offset", "shard", "size")
    shard: str
    offset: int
    size: int

    def __new__(cls, shard: str, name: str, offset: int, size: int) -> Self:
        """Create the name and attach the position."""
        image = super().__new__(cls, f"{shard}/{name}")
        image.shard, image.offset, image.size = shard, offset, size
        return image

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardImage, (self.shard, self[len(self.shard) + 1 :], self.offset, self.size)


class Names(Sequence[str]):
    """Paths and images in shards, made as ``str`` or ``ShardImage`` only when requested.

    Worker processes share the arrays, since reading them changes no reference count.

    Args:
        text: The names without folders, as UTF-8, uint8 [T].
        rows: The numbers of N images, ``ROW`` [N]; the offset is 0 for an image outside of shards.
        folders: The folders, or shards, with a trailing slash.
    """

    def __init__(
        self, text: npt.NDArray[np.uint8], rows: npt.NDArray[Any], folders: Iterable[str]
    ) -> None:
        self.text, self.rows, self.folders = text, rows, tuple(folders)

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Hold any number of names from any iterable."""
        if isinstance(names, Names):
            return names
        text, rows, folders = bytearray(), [np.empty(0, ROW)], dict[str, int]()
        names = iter(names)
        while chunk := list(islice(names, _CHUNK)):
            numbers = []
            for name in chunk:
                if isinstance(name, ShardImage):
                    folder, position = f"{name.shard}/", (name.offset, name.size)
                else:
                    folder, position = folder_of(name), (0, 0)
                file = name[len(folder) :].encode("utf-8", "surrogatepass")
                number = folders.setdefault(folder, len(folders))
                numbers.append((len(text), len(file), number, *position))
                text += file
            rows.append(np.array(numbers, ROW))
        return cls(np.frombuffer(text, np.uint8), np.concatenate(rows), folders)

    @classmethod
    def joined(cls, parts: Iterable["Names"]) -> "Names":
        """Concatenate parts; the folders in use come part by part, in the order of each part."""
        texts, rows = [np.empty(0, np.uint8)], [np.empty(0, ROW)]
        folders, end = dict[str, int](), 0
        for part in filter(len, parts):
            # copy only the text and folders in use: a part may be a few of many names
            first = int(part.rows["start"].min())
            last = int((part.rows["start"] + part.rows["length"]).max())
            used, folder = np.unique(part.rows["folder"], return_inverse=True)
            numbers = [folders.setdefault(part.folders[number], len(folders)) for number in used]
            # renumber the folders, and shift the text
            moved = part.rows.copy()
            moved["folder"] = np.array(numbers)[folder]
            moved["start"] += end - first
            texts.append(part.text[first:last])
            rows.append(moved)
            end += last - first
        return cls(np.concatenate(texts), np.concatenate(rows), folders)

    def take(self, indices: npt.NDArray[Any] | slice) -> "Names":
        """Return a selection by indices, or by a bool for each name."""
        return Names(self.text, self.rows[indices], self.folders)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        if isinstance(index, slice):
            return self.take(index)
        return next(self._read(self.rows[index, None]))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _CHUNK):
            yield from self._read(self.rows[first : first + _CHUNK])

    def _read(self, rows: npt.NDArray[Any]) -> Iterator[str]:
        text = self.text.data
        for start, length, folder, offset, size in rows.tolist():
            name = str(text[start : start + length], "utf-8", "surrogatepass")
            parent = self.folders[folder]
            yield ShardImage(parent[:-1], name, offset, size) if offset else parent + name


def folder_of(path: str) -> str:
    """Return the part of a path up to its last slash."""
    return path[: path.rfind("/") + 1]


def places(names: Iterable[str]) -> Iterator[str]:
    """Yield each file's canonical path, the same for all its names."""
    folders: dict[str, tuple[str, frozenset[str]]] = {}
    for name in names:
        folder = folder_of(name)
        if folder not in folders:
            folders[folder] = _resolved(folder)
        real, links = folders[folder]
        file = name[len(folder) :]
        yield os.path.realpath(real + file) if file in links else real + file


def _resolved(folder: str) -> tuple[str, frozenset[str]]:
    """Return the canonical path of a folder, with a trailing slash, and the links in it."""
    real = os.path.join(os.path.realpath(folder), "")  # noqa: PTH118
    try:
        # listing the folder takes a few system calls, instead of one or more per file
        with os.scandir(real) as entries:
            return real, frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return real, frozenset()


def distinct(names: Names) -> Names:
    """Keep the first name of each file."""
    hashes = np.fromiter(map(hash, places(names)), np.int64, len(names))
    # only names with equal hashes can be the same file
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    again = np.flatnonzero(counts[inverse] > 1)
    seen, keep = set[str](), np.ones(len(names), bool)
    for index, path in zip(again.tolist(), places(names.take(again)), strict=True):
        keep[index] = path not in seen
        seen.add(path)
    return select(names, keep)


def unlisted(names: Names, listed: Iterable[str]) -> Names:
    """Keep the names of files that are not listed, under any of their names."""
    listed_paths = frozenset(places(listed))
    # of millions of names, check only names in the same folders or behind links
    near = frozenset(map(folder_of, listed_paths))
    near_folders = [real in near or bool(links) for real, links in map(_resolved, names.folders)]
    checked = np.array(near_folders, bool)[names.rows["folder"]]
    keep = ~checked
    keep[checked] = [path not in listed_paths for path in places(names.take(checked))]
    return select(names, keep)


def select(names: Names, keep: Iterable[bool]) -> Names:
    """Keep the names for which ``keep`` has True."""
    kept = np.fromiter(keep, bool, len(names))
    return names if kept.all() else names.take(kept)
