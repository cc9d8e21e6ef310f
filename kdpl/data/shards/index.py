"""Positions of images in shards: found once, and kept for later starts and all processes.

The index of a folder's shards is a file in the folder, or in the user's cache for shards behind
URLs. In a folder that cannot be written to, the shards are indexed at each start.
"""

import os
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from kdpl.data.identity import stamp
from kdpl.data.names import ROW, Names, ShardImage, folder_of
from kdpl.data.parallel import progress_bar
from kdpl.data.paths import COMPRESSED_ENDINGS, is_parquet, is_shard, is_url
from kdpl.data.shards import archives, parquet, remote
from kdpl.errors import ArtifactError, DataError
from kdpl.runtime.artifacts import read_tensors, write_tensors
from kdpl.runtime.origin import digest

INDEX_FILE = ".kdpl-shards.safetensors"

_KIND, _VERSION = "an index of shards", 2
_AT_ONCE = 8  # shards scanned at a time; a mounted disk may be slow to answer

_Index = dict[str, tuple[list[int], Names]]
"""Stamp and images of each shard."""


def unfold(files: Names) -> Names:
    """Replace each shard by its images, see ``index_shards``."""
    images_of = index_shards([file for file in files if is_shard(file)])
    # keep the order, with runs of files between shards in one part
    parts = list[Names]()
    for in_shards, group in groupby(files, images_of.__contains__):
        if in_shards:
            parts += map(images_of.__getitem__, group)
        else:
            parts.append(Names.of(group))
    return Names.joined(parts)


def index_shards(shards: Sequence[str]) -> dict[str, Names]:
    """Find the images of several distinct shards, in their order in each shard."""
    # start from stored indices, and scan new and changed shards
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        stamps = dict(zip(shards, pool.map(stamp, shards), strict=True))
    indices = {folder: _load(folder, stamps) for folder in dict.fromkeys(map(folder_of, shards))}
    new = [shard for shard in shards if shard not in indices[folder_of(shard)]]
    with ThreadPoolExecutor(_AT_ONCE) as pool, progress_bar() as progress:
        counts = zip(new, pool.map(_look_through, new), strict=True)
        for shard, images in progress.track(counts, len(new), description="shards"):
            indices[folder_of(shard)][shard] = stamps[shard], images
    for folder in dict.fromkeys(map(folder_of, new)):
        _save(folder, indices[folder])
    return {shard: indices[folder_of(shard)][shard][1] for shard in shards}


def _load(folder: str, stamps: Mapping[str, list[int]]) -> _Index:
    # without shards whose stamp has changed
    index: _Index = {}
    # a missing or unreadable file is skipped
    with suppress(ArtifactError, ValueError, TypeError, LookupError, AttributeError):
        tensors, fields = read_tensors(_file_of(folder), _KIND, _VERSION, "index the shards again")
        rows = tensors["rows"].numpy().view(ROW)[:, 0]
        stored = {f"{folder}{name}": value for name, value in fields["stamps"].items()}
        names = Names(tensors["text"].numpy(), rows, [f"{shard}/" for shard in stored])
        # images are in the order of the shards
        ends = np.searchsorted(rows["folder"], np.arange(len(stored)), side="right").tolist()
        for (shard, value), first, end in zip(stored.items(), [0, *ends], ends, strict=False):
            if stamps.get(shard, value) == value:
                index[shard] = value, names[first:end]
    return index


def _save(folder: str, index: _Index) -> None:
    images = Names.joined(names for _, names in index.values())
    rows = torch.from_numpy(images.rows.view(np.int64).reshape(-1, ROW.itemsize // 8))
    tensors = {"rows": rows, "text": torch.from_numpy(images.text)}
    stamps = {shard.removeprefix(folder): value for shard, (value, _) in index.items()}
    # the folder may be read-only; a name that is not UTF-8 is a ValueError
    with suppress(OSError, ValueError):
        write_tensors(_file_of(folder), _KIND, _VERSION, tensors, {"stamps": stamps})


def _file_of(folder: str) -> Path:
    if not is_url(folder):
        return Path(folder) / INDEX_FILE
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "kdpl" / "shards" / f"{digest([folder])}.safetensors"


def _look_through(shard: str) -> Names:
    if shard.lower().endswith(COMPRESSED_ENDINGS):
        raise DataError(
            f"shard {shard} is compressed, which hides single images: make it a plain .tar"
        )
    if is_parquet(shard):
        return _required(shard, parquet.index_rows(shard))
    # by name: the later of two members of one name counts, as when a shard is unpacked
    members: dict[str, ShardImage] = {}
    try:
        with remote.open_file(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archives.images_of(archive):
                members[member.name] = ShardImage(
                    shard, member.name, member.offset_data, member.size
                )
    except archives.UNREADABLE as error:
        raise DataError(archives.fault_of(shard, error)) from error
    return _required(shard, Names.of(members.values()))


def _required(shard: str, images: Names) -> Names:
    if not images:
        raise DataError(f"shard {shard} has no images: leave it out of unlabeled")
    return images
