"""Decoding all images before anything is trained: which of them cannot be used, and a file that remembers it."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from PIL.Image import Image

from kdpl.data.parallel import in_parallel
from kdpl.errors import DataError
from kdpl.runtime.files import atomic_path

FILE = "checked_images.json"
"""Name of the file in a run's folder."""

_VERSION = 1
_SHOWN = 10


@dataclass(frozen=True)
class Checked:
    """The result of decoding all ``images`` of a dataset, whose list has the digest ``names``.

    ``skipped`` are those that cannot be used, each with the reason as half a sentence that names it.
    """

    names: str
    images: int
    skipped: dict[str, str]

    @classmethod
    def look(cls, sources: Sequence[str], open_image: Callable[[str], Image], workers: int | None = None) -> "Checked":
        """Decode every image, in parallel under a progress bar; see ``in_parallel``."""
        faults = faults_of(sources, open_image, "looking at all images", workers)
        # without what to do about it
        skipped = {source: fault.rpartition(": ")[0] for source, fault in faults}
        return cls(digest_names(sources), len(sources), skipped)

    @classmethod
    def load(cls, file: Path) -> "Checked | None":
        """Read a file; None where there is nothing that can be read."""
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            skipped = {str(source): str(reason) for source, reason in fields["skipped"].items()}
            if fields["version"] != _VERSION:
                return None
            return cls(str(fields["names"]), int(fields["images"]), skipped)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def save(self, file: Path) -> None:
        """Write it, atomically."""
        with atomic_path(file) as temporary:
            text = json.dumps({"version": _VERSION, **asdict(self)}, indent=2, ensure_ascii=False)
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")

    def require_none(self) -> None:
        """Refuse images that cannot be used, by a DataError that names the first ones."""
        if not self.skipped:
            return
        named = [*self.skipped.values()]
        more = [f"and {len(named) - _SHOWN} more"] if len(named) > _SHOWN else []
        said = f"{len(named)} of {self.images} images cannot be used ({'; '.join(named[:_SHOWN] + more)})"
        raise DataError(f"{said}: replace or remove them, or set data.init_args.bad_images to skip")


def faults_of(
    sources: Sequence[str], open_image: Callable[[str], Image], title: str, workers: int | None = None
) -> Iterator[tuple[str, str]]:
    """Decode every image; yields those that fail, with the message."""
    faults = in_parallel(partial(_fault_of, open_image=open_image), sources, title, workers)
    return ((source, fault) for source, fault in zip(sources, faults, strict=True) if fault is not None)


def _fault_of(source: str, open_image: Callable[[str], Image]) -> str | None:
    try:
        open_image(source)
    except DataError as error:
        return str(error)
    return None


def digest_names(sources: Iterable[str]) -> str:
    """Digest a list of images."""
    return hashlib.blake2b(b"".join(os.fsencode(source) + b"\0" for source in sources), digest_size=16).hexdigest()


def read_skip_list(file: Path) -> frozenset[str]:
    """Read which images to leave out; DataError if the file is missing, of another kind or unreadable.

    It is a ``.txt`` file with a path on each line, a ``.csv`` file with the path in its first column, or a run's own
    ``checked_images.json``.
    """
    if not file.is_file():
        raise DataError(f"skip list {file} does not exist: check skip_list")
    if file.suffix in (".txt", ".csv"):
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            if file.suffix == ".txt":
                return frozenset(path for line in lines if (path := line.strip("\r\n")))
            return frozenset(row[0] for row in csv.reader(lines) if row)
    checked = Checked.load(file)
    if checked is None:
        raise DataError(f"skip list {file} is of an unknown kind: give a {FILE}, .txt or .csv file")
    return frozenset(checked.skipped)
