"""Looking at all images before anything is trained: which of them cannot be used, and what is remembered of that."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from PIL.Image import Image

from kdpl.data.parallel import in_parallel
from kdpl.data.shards import ShardImage
from kdpl.data.storage import is_url, stamp
from kdpl.errors import DataError
from kdpl.runtime.files import atomic_path

FILE = "checked_images.json"
"""Name of the file in a run's folder."""

_VERSION = 1
_SHOWN = 10
_STAMPS_AT_ONCE = 16  # mostly waits for a file server


class Fault(NamedTuple):
    """An image that cannot be used.

    Attributes:
        source: The image.
        reason: Why, as half a sentence that names it.
    """

    source: str
    reason: str


@dataclass(frozen=True)
class Checked:
    """What was found when all images of a dataset were looked at.

    Attributes:
        names: Digest of the list of images.
        stamps: Digest of their sizes and times.
        images: How many there are.
        faults: Those that cannot be used.
    """

    names: str
    stamps: str
    images: int
    faults: tuple[Fault, ...]

    @classmethod
    def look(cls, sources: Sequence[str], open_image: Callable[[str], Image], workers: int | None = None) -> "Checked":
        """Decode every image, in parallel under a progress bar.

        Args:
            sources: The images.
            open_image: Opens one; a function at module level.
            workers: Processes; None: one for each processor core; 1: this process alone.
        """
        stamps = digest_stamps(sources)  # before: an image that is changed meanwhile is looked at again
        looked = in_parallel(partial(fault_of, open_image=open_image), sources, "looking at all images", workers)
        faults = (Fault(source, reason) for source, reason in zip(sources, looked, strict=True) if reason is not None)
        return cls(digest_names(sources), stamps, len(sources), tuple(faults))

    @classmethod
    def load(cls, file: Path) -> "Checked | None":
        """Read what was remembered; None where there is nothing that can be read."""
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            if fields["version"] != _VERSION:
                return None
            faults = tuple(Fault(str(source), str(reason)) for source, reason in fields["skipped"].items())
            return cls(str(fields["names"]), str(fields["stamps"]), int(fields["images"]), faults)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, file: Path) -> None:
        """Write it, atomically."""
        fields = {"version": _VERSION, "images": self.images, "names": self.names, "stamps": self.stamps}
        with atomic_path(file) as temporary:
            text = json.dumps({**fields, "skipped": dict(self.faults)}, indent=2, ensure_ascii=False)
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")

    def require_none(self) -> None:
        """Refuse images that cannot be used.

        Raises:
            DataError: There are some; the first ones are named.
        """
        if not self.faults:
            return
        named = "; ".join(fault.reason for fault in self.faults[:_SHOWN])
        more = f"; and {len(self.faults) - _SHOWN} more" if len(self.faults) > _SHOWN else ""
        raise DataError(
            f"{len(self.faults)} of {self.images} images cannot be used ({named}{more}): replace or remove them, or "
            "set data.init_args.bad_images to skip, which leaves them out"
        )


def fault_of(source: str, open_image: Callable[[str], Image]) -> str | None:
    """Decode an image; gives what is wrong with it, or None."""
    try:
        open_image(source)
    except DataError as error:
        # less what to do about it
        return str(error).rpartition(": ")[0]
    return None


def digest_names(sources: Iterable[str]) -> str:
    """Digest a list of images."""
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        digest.update(os.fsencode(source) + b"\0")
    return digest.hexdigest()


def digest_stamps(sources: Sequence[str]) -> str:
    """Digest sizes and times of images; of those in a shard, the shard's, and of one behind a URL its name alone."""
    of_shard = cache(stamp)

    def each(source: str) -> str:
        if isinstance(source, ShardImage):
            return f"{of_shard(source.shard)} {source.offset} {source.size}"
        return "" if is_url(source) else stamp(source)

    digest = hashlib.blake2b(digest_size=16)
    with ThreadPoolExecutor(_STAMPS_AT_ONCE) as pool:
        for source, status in zip(sources, pool.map(each, sources), strict=True):
            digest.update(os.fsencode(source) + b"\0" + status.encode() + b"\0")
    return digest.hexdigest()


def read_skip_list(file: Path) -> frozenset[str]:
    """Read which images to leave out.

    Args:
        file: A ``.txt`` file with a path on each line, a ``.csv`` file with the path in its first column, or a run's
            own ``checked_images.json``.

    Raises:
        DataError: It is missing, of another kind or unreadable.
    """
    if not file.is_file():
        raise DataError(f"skip list {file} does not exist: check skip_list")
    if file.suffix == ".json":
        checked = Checked.load(file)
        if checked is None:
            raise DataError(f"skip list {file} is not what a run wrote: give a {FILE}, .txt or .csv file")
        return frozenset(fault.source for fault in checked.faults)
    if file.suffix not in (".txt", ".csv"):
        raise DataError(f"skip list {file} is of an unknown kind: give a {FILE}, .txt or .csv file")
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        if file.suffix == ".txt":
            return frozenset(path for line in lines if (path := line.strip("\r\n")))
        return frozenset(row[0] for row in csv.reader(lines) if row)
