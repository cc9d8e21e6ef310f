"""Names of images, of which there may be very many: text and numbers in arrays, without a Python object for each."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from kdpl.data.readers.shards import ShardImage
from kdpl.data.storage import is_url

ROW = np.dtype([("start", "<i8"), ("length", "<i4"), ("folder", "<i4"), ("offset", "<i8"), ("size", "<i8")])
"""Numbers of an image: where its name within its folder lies in the text, its folder, and its place in a shard."""

_CHUNK = 2**14
_FEW = 8  # files of a folder that are asked for one by one whether they are links


class Names(Sequence[str]):
    """Paths, URLs, and images in shards, for which a ``str`` or ``ShardImage`` is made whenever one is asked for.

    Worker processes share the arrays, since reading them changes no reference count. They may be mapped from a file.

    Args:
        text: The names without folders, as UTF-8, uint8 [T].
        rows: For each of N images its numbers, ``ROW`` [N]; of an image that is not in a shard the offset is 0.
        folders: The folders, or shards, each with the slash behind it.
    """

    def __init__(self, text: npt.NDArray[np.uint8], rows: npt.NDArray[Any], folders: Sequence[str]) -> None:
        self.text, self.rows, self.folders = text, rows, tuple(folders)

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Hold any number of names, which may come one at a time."""
        if isinstance(names, Names):
            return names
        text, rows, folders = bytearray(), [np.empty(0, ROW)], dict[str, int]()
        names = iter(names)
        while some := list(islice(names, _CHUNK)):
            numbers = []
            for name in some:
                offset = size = 0
                if isinstance(name, ShardImage):
                    folder, file, offset, size = f"{name.shard}/", name[len(name.shard) + 1 :], name.offset, name.size
                else:
                    folder, slash, file = name.rpartition("/")
                    folder += slash
                start = len(text)
                text += file.encode("utf-8", "surrogatepass")
                number = folders.setdefault(folder, len(folders))
                numbers.append((start, len(text) - start, number, offset, size))
            rows.append(np.array(numbers, ROW))
        return cls(np.frombuffer(text, np.uint8), np.concatenate(rows), tuple(folders))

    @classmethod
    def joined(cls, parts: Iterable["Names"]) -> "Names":
        """Concatenate several; the folders that are used are numbered in the order of their first image."""
        texts, rows, folders, end = [np.empty(0, np.uint8)], [np.empty(0, ROW)], dict[str, int](), 0
        for part in filter(len, parts):
            moved, numbers = part.rows.copy(), np.zeros(len(part.folders), np.int32)
            for number in np.unique(moved["folder"]).tolist():
                numbers[number] = folders.setdefault(part.folders[number], len(folders))
            moved["folder"] = numbers[moved["folder"]]
            # of the text only what these use, which may be some of many
            first, last = int(moved["start"].min()), int((moved["start"] + moved["length"]).max())
            moved["start"] += end - first
            texts.append(part.text[first:last])
            rows.append(moved)
            end += last - first
        return cls(np.concatenate(texts), np.concatenate(rows), tuple(folders))

    def take(self, indices: npt.NDArray[Any] | slice) -> "Names":
        """Return some, by their indices or by a bool for each."""
        return Names(self.text, self.rows[indices], self.folders)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        return self.take(index) if isinstance(index, slice) else next(self._read(self.rows[index, None]))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _CHUNK):
            yield from self._read(self.rows[first : first + _CHUNK])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def _read(self, rows: npt.NDArray[Any]) -> Iterator[str]:
        text = self.text.data
        for start, length, folder, offset, size in rows.tolist():
            name, at = str(text[start : start + length], "utf-8", "surrogatepass"), self.folders[folder]
            yield ShardImage(at[:-1], name, offset, size) if offset else at + name


def places(names: Names) -> Iterator[str]:
    """Canonical path of each file, the same for all its names: absolute, relative, or through a link. URLs stay."""
    folder, single = names.rows["folder"], names.rows["offset"] == 0
    real, links = list(names.folders), set[str]()
    few = np.zeros(len(real), bool)
    for number in np.unique(folder).tolist():
        if not is_url(real[number]):
            real[number] = os.path.join(os.path.realpath(real[number]), "")  # noqa: PTH118
    within, files = Names(names.text, names.rows, real), np.bincount(folder[single], minlength=len(real))
    for number in np.flatnonzero(files).tolist():
        few[number] = files[number] < _FEW and not is_url(real[number])
        if not few[number] and not is_url(real[number]):
            links.update(_links_in(real[number]))
    links.update(filter(os.path.islink, within.take(few[folder] & single)))
    return (os.path.realpath(place) if place in links else place for place in within)


def distinct(names: Names, key: Callable[[Names], Iterable[str]] = places) -> Names:
    """Keep the first of those names that have the same key."""
    hashes = np.fromiter(map(hash, key(names)), np.int64, len(names))
    _, which, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    again = np.flatnonzero(counts[which] > 1)
    seen, keep = set[str](), np.ones(len(names), bool)
    for index, each in zip(again.tolist(), key(names.take(again)), strict=True):
        keep[index] = each not in seen
        seen.add(each)
    return select(names, keep)


def unlisted(names: Names, known: Iterable[str]) -> Names:
    """Keep those names that are not among the known ones, under any name."""
    there = frozenset(places(Names.of(known)))
    return select(names, (place not in there for place in places(names))) if there else names


def select(names: Names, keep: Iterable[bool]) -> Names:
    """Keep those names for which ``keep`` has True."""
    kept = np.fromiter(keep, bool, len(names))
    return names if kept.all() else names.take(kept)


def _links_in(folder: str) -> Iterator[str]:
    try:
        # unlike a question for each file, a listing of the folder is a few system calls
        with os.scandir(folder) as entries:
            yield from (folder + entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return
