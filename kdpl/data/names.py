"""Names of very many images: text and numbers in arrays, without a Python object for each."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from kdpl.data.shard_image import ShardImage
from kdpl.data.storage import is_url

ROW = np.dtype(
    [("start", "<i8"), ("length", "<i4"), ("folder", "<i4"), ("offset", "<i8"), ("size", "<i8")]
)
"""Numbers of an image: where its name starts in the text, its folder, its place in a shard."""

Indices = npt.NDArray[np.int64]

_CHUNK = 2**14
_FEW = 8  # files of a folder that are asked for one by one whether they are links


class Names(Sequence[str]):
    """Paths, URLs and images in shards, made as ``str`` or ``ShardImage`` only when requested.

    Worker processes share the arrays, since reading them changes no reference count.

    Args:
        text: The names without folders, as UTF-8, uint8 [T].
        rows: For each of N images its numbers, ``ROW`` [N]; of an image that is not in a shard the
            offset is 0.
        folders: The folders, or shards, each with the slash behind it.
    """

    def __init__(
        self, text: npt.NDArray[np.uint8], rows: npt.NDArray[Any], folders: Sequence[str]
    ) -> None:
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
                    folder, file, offset, size = (
                        f"{name.shard}/",
                        name[len(name.shard) + 1 :],
                        name.offset,
                        name.size,
                    )
                else:
                    folder = folder_of(name)
                    file = name[len(folder) :]
                start = len(text)
                text += file.encode("utf-8", "surrogatepass")
                number = folders.setdefault(folder, len(folders))
                numbers.append((start, len(text) - start, number, offset, size))
            rows.append(np.array(numbers, ROW))
        return cls(np.frombuffer(text, np.uint8), np.concatenate(rows), tuple(folders))

    @classmethod
    def joined(cls, parts: Iterable["Names"]) -> "Names":
        """Concatenate several; the folders used come part by part, in the order within each."""
        parts = [part for part in parts if len(part)]
        # in place from here on, for the sake of memory
        rows = np.concatenate([np.empty(0, ROW), *(part.rows for part in parts)])
        texts, folders, end, row = [np.empty(0, np.uint8)], dict[str, int](), 0, 0
        for part in parts:
            moved, numbers = rows[row : row + len(part)], np.zeros(len(part.folders), np.int32)
            for number in np.unique(moved["folder"]).tolist():
                numbers[number] = folders.setdefault(part.folders[number], len(folders))
            moved["folder"] = numbers[moved["folder"]]
            # of the text only what these use, which may be some of many
            first, last = int(moved["start"].min()), int((moved["start"] + moved["length"]).max())
            moved["start"] += end - first
            texts.append(part.text[first:last])
            end, row = end + last - first, row + len(part)
        return cls(np.concatenate(texts), rows, tuple(folders))

    def take(self, indices: npt.NDArray[Any] | slice) -> "Names":
        """Return some, by their indices or by a bool for each."""
        return Names(self.text, self.rows[indices], self.folders)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        return (
            self.take(index)
            if isinstance(index, slice)
            else next(self._read(self.rows[index, None]))
        )

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
            name, at = (
                str(text[start : start + length], "utf-8", "surrogatepass"),
                self.folders[folder],
            )
            yield ShardImage(at[:-1], name, offset, size) if offset else at + name


def folder_of(path: str) -> str:
    """The part of a path or URL up to its last slash."""
    return path[: path.rfind("/") + 1]


def places(names: Names) -> Iterator[str]:
    """Yield each file's canonical path, the same for all its names; URLs stay as they are.

    The names may be absolute, relative, or through a link.
    """
    within, links = _resolved(names)
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
    (folders, _), (within, links) = _resolved(listed := Names.of(known)), _resolved(names)
    there = frozenset(places(listed))
    # of millions of names only those in the same folders can be among them
    near = {*folders.folders, *map(folder_of, chain(there, links))}
    asked = np.array([folder in near for folder in within.folders], bool)[names.rows["folder"]]
    keep = np.ones(len(names), bool)
    keep[asked] = [place not in there for place in places(names.take(asked))]
    return select(names, keep)


def select(names: Names, keep: Iterable[bool]) -> Names:
    """Keep those names for which ``keep`` has True."""
    kept = np.fromiter(keep, bool, len(names))
    return names if kept.all() else names.take(kept)


def digest_of(sources: Sequence[str]) -> str:
    """Digest images by their paths below their common folder, so that a dataset may be moved."""
    try:
        base = os.path.commonpath({os.path.dirname(source) for source in sources})  # noqa: PTH120 - any string, not a path
    except ValueError:
        base = ""  # absolute and relative paths, or URLs, which cannot be moved together
    digest = hashlib.sha256()
    for source in sources:
        name = source[len(base) :].replace(os.sep, "/").lstrip("/")
        digest.update(name.encode(errors="surrogateescape") + b"\0")  # a path need not be UTF-8
    return digest.hexdigest()


def _resolved(names: Names) -> tuple[Names, set[str]]:
    """The names below canonical folders, and those of them that are links."""
    folder, single = names.rows["folder"], names.rows["offset"] == 0
    used = np.bincount(folder, minlength=len(names.folders)).tolist()
    files = np.bincount(folder[single], minlength=len(names.folders))
    real = [
        os.path.join(os.path.realpath(each), "") if count and not is_url(each) else each  # noqa: PTH118
        for each, count in zip(names.folders, used, strict=True)
    ]
    within = Names(names.text, names.rows, real)
    links = {
        link
        for number in np.flatnonzero(files >= _FEW).tolist()
        for link in _links_in(real[number])
    }
    links.update(filter(os.path.islink, within.take((files < _FEW)[folder] & single)))
    return within, links


def _links_in(folder: str) -> Iterator[str]:
    try:
        # unlike a question for each file, a listing of the folder is a few system calls
        with os.scandir(folder) as entries:
            yield from (folder + entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return
