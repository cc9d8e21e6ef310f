"""Tar shards of small pictures."""

import io
import tarfile

from runs import noise


def encoded(seed):
    file = io.BytesIO()
    noise(9, 7, seed=seed).save(file, "PNG")
    return file.getvalue()


def add(shard, name, content=b"", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    shard.addfile(info, io.BytesIO(content))


def write_shard(path, seeds, mode="w"):
    """A shard as WebDataset writes them: an image and its notes for each key."""
    with tarfile.open(path, mode) as shard:
        for seed in seeds:
            add(shard, f"{seed:04d}.png", encoded(seed))
            add(shard, f"{seed:04d}.json", b"{}")
    return path
