"""Positions of images in tar shards: found once, and kept for later starts and all processes.

The index of the shards of a folder is a file in it or, if it is distant or may not be written to,
in ``$XDG_CACHE_HOME/kdpl/shards``, by default in ``~/.cache``.
"""

import hashlib
import os
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from kdpl.data.names import ROW, Names, ShardImage, folder_of
from kdpl.data.parallel import progress_bar
from kdpl.data.storage import is_url
from kdpl.errors import ArtifactError, DataError
from kdpl.runtime.artifacts import read_tensors, write_tensors
from kdpl.shards.parquet import index_rows
from kdpl.shards.reader import UNREADABLE, fault_of, images_of
from kdpl.shards.remote import COMPRESSED_ENDINGS, is_parquet, open_file, stamp

INDEX_FILE = ".kdpl-shards.safetensors"

_KIND, _VERSION = "an index of shards", 2
_AT_ONCE = 8  # shards that are looked through at a time; mostly waits for the network

_Index = dict[str, tuple[str, Names]]
"""Stamp and images of each shard."""


def index_shards(shards: Sequence[str]) -> dict[str, Names]:
    """Find the images of each of several different shards, in the order in which they lie there.

    DataError if a shard does not exist, is compressed or damaged, or is a tar without images.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool, progress_bar() as progress:
        stamps = dict(zip(shards, pool.map(stamp, shards), strict=True))
        indices = {
            folder: _load(folder, stamps) for folder in dict.fromkeys(map(folder_of, shards))
        }
        new = [shard for shard in shards if shard not in indices[folder_of(shard)]]
        counts = zip(new, pool.map(_look_through, new), strict=True)
        try:
            for shard, images in progress.track(counts, len(new), description="shards"):
                indices[folder_of(shard)][shard] = stamps[shard], images
        finally:
            # an interruption keeps what was found
            for folder in dict.fromkeys(map(folder_of, new)):
                _save(folder, indices[folder])
    return {shard: indices[folder_of(shard)][shard][1] for shard in shards}


def _load(folder: str, stamps: Mapping[str, str]) -> _Index:
    """The index of a folder's shards, without those of ``stamps`` that have changed."""
    index: _Index = {}
    for file in _files(folder):
        # no file, or a damaged one
        with suppress(ArtifactError, ValueError, TypeError, LookupError, AttributeError):
            tensors, fields = read_tensors(file, _KIND, _VERSION, "index the shards again")
            rows = tensors["rows"].numpy().view(ROW)[:, 0]
            known: dict[str, str] = {folder + name: at for name, at in fields["stamps"].items()}
            names = Names(tensors["text"].numpy(), rows, [f"{shard}/" for shard in known])
            # each shard has images, and those of the first come first
            ends = np.cumsum(np.bincount(rows["folder"])).tolist()
            for (shard, value), first, end in zip(known.items(), [0, *ends], ends, strict=False):
                if value and stamps.get(shard, value) == value:
                    index[shard] = value, names[first:end]
    return index


def _save(folder: str, index: _Index) -> None:
    # neither an empty Parquet file nor one of paths, which would have to be read in any case
    index = {
        shard: (value, images)
        for shard, (value, images) in index.items()
        if len(images) and images.rows["offset"].all()
    }
    images = Names.joined(images for _, images in index.values())
    rows = torch.from_numpy(images.rows.view(np.int64).reshape(-1, ROW.itemsize // 8))
    stamps = {shard.removeprefix(folder): value for shard, (value, _) in index.items()}
    for file in _files(folder):
        # a name that is not UTF-8 is a ValueError
        with suppress(OSError, ValueError):
            tensors = {"rows": rows, "text": torch.from_numpy(images.text)}
            write_tensors(file, _KIND, _VERSION, tensors, {"stamps": stamps})
            return


def _files(folder: str) -> list[Path]:
    """Files that an index may be in."""
    there = folder if is_url(folder) else os.path.realpath(folder)
    kept = hashlib.blake2b(os.fsencode(there), digest_size=16).hexdigest()
    caches = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    cache = caches / "kdpl" / "shards" / f"{kept}.safetensors"
    return [cache] if is_url(folder) else [Path(folder) / INDEX_FILE, cache]


def _look_through(shard: str) -> Names:
    if is_parquet(shard):
        return index_rows(shard)
    # by name: of two members of one name the later one counts, as when a shard is unpacked
    members: dict[str, ShardImage] = {}
    if shard.lower().endswith(COMPRESSED_ENDINGS):
        raise DataError(
            f"shard {shard} is compressed, which hides single images: make it a plain .tar"
        )
    try:
        with open_file(shard) as file, tarfile.open(fileobj=file, mode="r:") as opened:
            for member in images_of(opened):
                place = member.offset_data, member.size
                members[member.name] = ShardImage(shard, member.name, *place)
    except UNREADABLE as error:
        raise DataError(fault_of(shard, error)) from error
    if not members:
        raise DataError(f"shard {shard} has no images: leave it out of unlabeled")
    return Names.of(members.values())
