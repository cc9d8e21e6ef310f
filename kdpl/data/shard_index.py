"""Where the images of tar shards lie: found once, and kept for the next start and for all processes.

The index of the shards of a folder is a file in it or, if it is distant or may not be written to, in
``$XDG_CACHE_HOME/kdpl/shards``, by default in ``~/.cache``.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from kdpl.data.names import ROW, Names, folder_of
from kdpl.data.readers.shards import UNREADABLE, ShardImage, images_of, open_tar
from kdpl.data.storage import COMPRESSED_ENDINGS, is_url, open_file, stamp
from kdpl.errors import ArtifactError, DataError, reason
from kdpl.runtime.artifacts import read_tensors, write_tensors

INDEX_FILE = ".kdpl-shards.safetensors"

_KIND, _VERSION = "an index of shards", 1
_AT_ONCE = 8  # shards that are looked through at a time; mostly waits for the network
# bytes from which on processes share an index by mapping its file, which over NFS no other machine may then replace
_MAPPED = 2**30
_BLOCK = 512  # shards after which the index is written, so that an interruption loses little


def index_shards(shards: Sequence[str]) -> Names:
    """Find all images of different shards, which are the ``folders`` of the names, each with its images in order.

    DataError if a shard does not exist, is compressed or damaged, or has no image.
    """
    by_folder: defaultdict[str, list[str]] = defaultdict(list)
    for shard in shards:
        by_folder[folder_of(shard)].append(shard)
    console = Console(stderr=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        stamps = dict(zip(shards, pool.map(stamp, shards), strict=True))
        indices = {folder: _load(folder, stamps) for folder in by_folder}
        new = [shard for folder, index in indices.items() for shard in by_folder[folder] if shard not in index.stamps]
        found = zip(new, pool.map(_look_through, new), strict=True)
        shown = track(found, "shards", len(new), console=console, transient=True, disable=not console.is_terminal)
        looked: defaultdict[str, list[_Index]] = defaultdict(list)
        for done, (shard, images) in enumerate(shown, start=1):
            looked[folder_of(shard)].append(_Index(images, {shard: stamps[shard]}))
            if done % _BLOCK == 0 or done == len(new):
                for folder, fresh in looked.items():
                    whole = _Index.joined([indices[folder], *fresh])
                    # those of another run, too
                    indices[folder] = whole.of(dict.fromkeys([*by_folder[folder], *whole.stamps]))
                    _save(folder, indices[folder])
                looked.clear()
    return _Index.joined(indices.values()).of(shards).images


@dataclass(frozen=True)
class _Index:
    """Images of shards, which are their folders, in the order of the shards, and the stamp of each shard."""

    images: Names
    stamps: dict[str, str]

    @classmethod
    def joined(cls, indices: Iterable["_Index"]) -> "_Index":
        indices = [*indices]
        stamps = {shard: stamp for index in indices for shard, stamp in index.stamps.items()}
        # a single one as it is, mapped from its file
        return indices[0] if len(indices) == 1 else cls(Names.joined(index.images for index in indices), stamps)

    def of(self, shards: Iterable[str]) -> "_Index":
        """Those of the shards that it has, in their order."""
        stamps = {shard: self.stamps[shard] for shard in shards if shard in self.stamps}
        ends = np.searchsorted(self.images.rows["folder"], np.arange(len(self.stamps)), side="right").tolist()
        spans = dict(zip(self.stamps, map(slice, [0, *ends[:-1]], ends), strict=True))
        if [*stamps] == [*self.stamps][: len(stamps)]:
            return _Index(self.images[: ends[len(stamps) - 1] if stamps else 0], stamps)
        return _Index(Names.joined(self.images[spans[shard]] for shard in stamps), stamps)


def _load(folder: str, stamps: Mapping[str, str]) -> _Index:
    """The index of a folder's shards, without shards that changed; the better one if there are two."""
    best = _Index(Names.of([]), {})
    for file in _files(folder):
        # no file, or a damaged one
        with suppress(ArtifactError, ValueError, TypeError, LookupError, AttributeError):
            tensors, fields = read_tensors(file, _KIND, _VERSION, "index the shards again")
            rows, text = tensors["rows"].numpy().view(ROW)[:, 0], tensors["text"].numpy()
            if rows.nbytes + text.nbytes < _MAPPED:
                rows, text = rows.copy(), text.copy()
            known = {f"{folder}{name}": str(value) for name, value in fields["stamps"].items()}
            inside = (rows["start"] >= 0) & (rows["length"] >= 0) & (rows["offset"] > 0)
            inside &= rows["start"] + rows["length"] <= len(text)
            # each shard has images, and those of the first come first
            steps = np.diff(rows["folder"], prepend=-1, append=len(known))
            rising = steps[0] == steps[-1] == 1 and ((steps == 0) | (steps == 1)).all()
            if text.dtype != np.uint8 or not inside.all() or not rising:
                raise ValueError("it has numbers that are out of range")
            index = _Index(Names(text, rows, [f"{shard}/" for shard in known]), known)
            kept = [shard for shard, value in known.items() if value and stamps.get(shard, value) == value]
            best = max(best, index.of(kept), key=lambda each: len(each.stamps.keys() & stamps))
    return best


def _save(folder: str, index: _Index) -> None:
    rows = torch.from_numpy(index.images.rows.view(np.int64).reshape(-1, ROW.itemsize // 8))
    tensors = {"rows": rows, "text": torch.from_numpy(index.images.text)}
    for file in _files(folder):
        # a name that is not UTF-8 is a ValueError
        with suppress(OSError, ValueError):
            stamps = {shard.removeprefix(folder): value for shard, value in index.stamps.items()}
            write_tensors(file, _KIND, _VERSION, tensors, {"stamps": stamps})
            return


def _files(folder: str) -> list[Path]:
    """Files that an index may be in."""
    there = folder if is_url(folder) else os.path.realpath(folder)
    kept = hashlib.blake2b(os.fsencode(there), digest_size=16).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "kdpl" / "shards" / f"{kept}.safetensors"
    return [cache] if is_url(folder) else [Path(folder) / INDEX_FILE, cache]


def _look_through(shard: str) -> Names:
    # by name: of two members of one name the later one counts, as when a shard is unpacked
    members: dict[str, ShardImage] = {}
    if shard.lower().endswith(COMPRESSED_ENDINGS):
        raise DataError(f"shard {shard} is compressed, which hides single images: make it a plain .tar")
    try:
        with open_file(shard) as file, open_tar(file, "r:") as opened:
            for member in images_of(opened):
                members[member.name] = ShardImage(shard, member.name, member.offset_data, member.size)
    except FileNotFoundError as error:
        raise DataError(f"shard {shard} does not exist: restore it, or leave it out of unlabeled") from error
    except UNREADABLE as error:
        raise DataError(f"shard {shard} is damaged ({reason(error)}): make it again, or leave it out") from error
    if not members:
        raise DataError(f"shard {shard} has no images: leave it out of unlabeled")
    return Names.of(members.values())
