"""Positions of images in tar shards: found once, and kept for later starts and all processes.

The index of a folder's shards is a file in the folder or, if it is remote or not writable, in
``$XDG_CACHE_HOME/kdpl/shards``, by default in ``~/.cache``.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from kdpl.data.names import ROW, Names, ShardImage, folder_of
from kdpl.data.parallel import progress_bar
from kdpl.data.shards.parquet import index_rows
from kdpl.data.shards.reader import UNREADABLE, fault_of, images_of, open_tar
from kdpl.data.shards.remote import COMPRESSED_ENDINGS, is_parquet, open_file, stamp
from kdpl.data.storage import is_url
from kdpl.errors import ArtifactError, DataError
from kdpl.runtime.artifacts import read_tensors, write_tensors

INDEX_FILE = ".kdpl-shards.safetensors"

_KIND, _VERSION = "an index of shards", 2
_AT_ONCE = 8  # shards scanned at a time; mostly waits for the network

_Index = dict[str, tuple[str, Names]]
"""Stamp and images of each shard."""


def index_shards(shards: Sequence[str]) -> dict[str, Names]:
    """Find the images of several distinct shards, in their order in each shard."""
    # start from stored indices, and scan new and changed shards
    with ThreadPoolExecutor(_AT_ONCE) as pool, progress_bar() as progress:
        stamps = dict(zip(shards, pool.map(stamp, shards), strict=True))
        indices = {
            folder: _load(folder, stamps) for folder in dict.fromkeys(map(folder_of, shards))
        }
        new = [shard for shard in shards if shard not in indices[folder_of(shard)]]
        counts = zip(new, pool.map(_look_through, new), strict=True)
        shown = progress.track(counts, len(new), description="shards")
        for shard, images in shown:
            indices[folder_of(shard)][shard] = stamps[shard], images
        for folder in dict.fromkeys(map(folder_of, new)):
            _save(folder, indices[folder])
    return {shard: indices[folder_of(shard)][shard][1] for shard in shards}


def _load(folder: str, stamps: Mapping[str, str]) -> _Index:
    """Load the index of a folder's shards, without shards whose stamp has changed."""
    index: _Index = {}
    for file in _files(folder):
        # a missing or damaged file is skipped
        with suppress(ArtifactError, ValueError, TypeError, LookupError, AttributeError):
            tensors, fields = read_tensors(file, _KIND, _VERSION, "index the shards again")
            rows, text = tensors["rows"].numpy().view(ROW)[:, 0], tensors["text"].numpy()
            stored = {f"{folder}{name}": str(value) for name, value in fields["stamps"].items()}
            # check that all numbers are in range
            inside = (rows["start"] >= 0) & (rows["length"] >= 0) & (rows["offset"] > 0)
            inside &= rows["start"] + rows["length"] <= len(text)
            # each shard has images, and images are in the order of shards
            steps = np.diff(rows["folder"], prepend=-1, append=len(stored))
            rising = steps[0] == steps[-1] == 1 and ((steps == 0) | (steps == 1)).all()
            if text.dtype != np.uint8 or not inside.all() or not rising:
                raise ValueError("it has numbers that are out of range")
            # take the shards that have not changed
            names = Names(text, rows, [f"{shard}/" for shard in stored])
            ends = np.searchsorted(rows["folder"], np.arange(len(stored)), side="right").tolist()
            for (shard, value), first, end in zip(stored.items(), [0, *ends], ends, strict=False):
                if value and stamps.get(shard, value) == value:
                    index[shard] = value, names[first:end]
    return index


def _save(folder: str, index: _Index) -> None:
    # without Parquet files that are empty or hold paths: they have to be read in any case
    index = {
        shard: (value, images)
        for shard, (value, images) in index.items()
        if len(images) and images.rows["offset"].all()
    }
    images = Names.joined(images for _, images in index.values())
    rows = torch.from_numpy(images.rows.view(np.int64).reshape(-1, ROW.itemsize // 8))
    stamps = {shard.removeprefix(folder): value for shard, (value, _) in index.items()}
    # write to the first file that can be written
    for file in _files(folder):
        # a name that is not UTF-8 is a ValueError
        with suppress(OSError, ValueError):
            write_tensors(
                file,
                _KIND,
                _VERSION,
                {"rows": rows, "text": torch.from_numpy(images.text)},
                {"stamps": stamps},
            )
            return


def _files(folder: str) -> list[Path]:
    """Return the files that may hold a folder's index."""
    path = folder if is_url(folder) else os.path.realpath(folder)
    name = hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        / "kdpl"
        / "shards"
        / f"{name}.safetensors"
    )
    return [cache] if is_url(folder) else [Path(folder) / INDEX_FILE, cache]


def _look_through(shard: str) -> Names:
    if is_parquet(shard):
        return index_rows(shard)
    # by name: the later of two members of one name counts, as when a shard is unpacked
    members: dict[str, ShardImage] = {}
    if shard.lower().endswith(COMPRESSED_ENDINGS):
        raise DataError(
            f"shard {shard} is compressed, which hides single images: make it a plain .tar"
        )
    try:
        with open_file(shard) as file, open_tar(file, "r:") as archive:
            for member in images_of(archive):
                members[member.name] = ShardImage(
                    shard, member.name, member.offset_data, member.size
                )
    except UNREADABLE as error:
        raise DataError(fault_of(shard, error)) from error
    if not members:
        raise DataError(f"shard {shard} has no images: leave it out of unlabeled")
    return Names.of(members.values())
