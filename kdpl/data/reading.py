"""A dataset as a run takes it: read once and decoded, without images that cannot be used, with test images."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, get_args

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from kdpl.data.names import Names, select
from kdpl.data.parallel import in_parallel
from kdpl.data.sampling import hold_out, keep_apart
from kdpl.data.splits import Reader, Splits
from kdpl.data.storage import read_list
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.files import atomic_path
from kdpl.shards.pieces import InPieces

BadImages = Literal["error", "skip"]

_SHOWN = 10
_KEPT = 10_000  # images after which is remembered how far it got


class Checked(BaseModel):
    """The result of decoding all ``images`` of a dataset, whose list has the digest ``names``.

    ``skipped`` are those that cannot be used, each with the reason as half a sentence that names it. Fewer are
    ``looked`` at if it was interrupted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    names: str
    images: int
    skipped: dict[str, str]
    looked: int

    @classmethod
    def look(cls, sources: Sequence[str], open_image: Callable[[str], Image], file: Path | None = None) -> "Checked":
        """Decode every image, in parallel under a progress bar; ``file`` remembers those that are done already."""
        names, known = digest_names(sources), cls.load(file) if file else None
        if known is None or known.names != names:
            known = cls(names=names, images=len(sources), skipped={}, looked=0)
        # a run's images are fixed when it begins, whatever becomes of them later
        if known.looked == len(sources):
            return known
        # before that, bad ones may be replaced
        skipped = dict(faults_of([*known.skipped], open_image, "looking at bad images again"))
        rest = sources[known.looked :]
        in_pieces = InPieces(Names.of(rest))
        faults = in_parallel(partial(_fault_of, open_image=open_image), in_pieces, "looking at all images")
        for done, (source, fault) in enumerate(zip(rest, faults, strict=True), start=known.looked + 1):
            if fault is not None:
                skipped[source] = fault
            if file and done % _KEPT == 0 and done < len(sources):
                known.model_copy(update={"skipped": skipped, "looked": done}).save(file)
        # without what to do about it
        skipped = {source: fault.rpartition(": ")[0] for source, fault in skipped.items()}
        return known.model_copy(update={"skipped": skipped, "looked": len(sources)})

    @classmethod
    def load(cls, file: Path) -> "Checked | None":
        """Read a file; None where there is nothing that can be read."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            return None

    def save(self, file: Path) -> None:
        """Write it, atomically."""
        with atomic_path(file) as temporary:
            text = json.dumps(self.model_dump(), indent=2, ensure_ascii=False)
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")

    def require_none(self) -> None:
        """Refuse images that cannot be used, by a DataError that names the first ones."""
        if not self.skipped:
            return
        named = [*self.skipped.values()]
        more = [f"and {len(named) - _SHOWN} more"] if len(named) > _SHOWN else []
        said = f"{len(named)} of {self.images} images cannot be used ({'; '.join(named[:_SHOWN] + more)})"
        raise DataError(f"{said}: convert, replace or remove them, or set data.init_args.bad_images to skip")


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
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        digest.update(os.fsencode(source) + b"\0")
    return digest.hexdigest()


def read_skip_list(file: Path) -> frozenset[str]:
    """Read which images to leave out; DataError if the file is missing, of another kind or unreadable.

    It is a ``.txt`` file with a path on each line, or a ``.csv`` file with the path in its first column.
    """
    if not file.is_file():
        raise DataError(f"skip list {file} does not exist: check skip_list")
    if file.suffix == ".txt":
        return frozenset(read_list(file))
    if file.suffix != ".csv":
        raise DataError(f"skip list {file} is of an unknown kind: give a .txt or .csv file")
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        return frozenset(row[0] for row in csv.reader(lines) if row)


@dataclass
class Reading:
    """How a dataset is read, by the settings of ``DomainDataModule``; ``file`` remembers which images can be used."""

    reader: Reader
    bad_images: BadImages = "error"
    scan: bool | None = None
    skip_list: str | None = None
    held_out: float | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.bad_images not in get_args(BadImages):
            raise ConfigError(f"bad_images {self.bad_images!r} is unknown: choose {' or '.join(get_args(BadImages))}")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be above 0 and below 1, not {self.held_out}: leave it out for none")

    @cached_property
    def splits(self) -> Splits:
        """The dataset, before protocol and sampling; read on first use."""
        return self._apart[0]

    @cached_property
    def _apart(self) -> tuple[Splits, int]:
        """The dataset, and the number of unlabelled images that are left out as test or validation images."""
        splits = self._listed
        if self._scans and self.bad_images == "skip":
            splits = leave_out(splits, self._checked.skipped)
        return keep_apart(hold_out(splits, self.held_out) if self.held_out is not None else splits)

    def prepare(self, trains: bool) -> None:
        """Decode all images, unless that was done or is not asked for, and remember the result.

        DataError if some cannot be used, ``bad_images`` is ``error``, and the run ``trains``.
        """
        if not self._scans or (self.bad_images == "error" and not trains):
            return
        if self.bad_images == "error":
            self._checked.require_none()
        if self.file and Checked.load(self.file) != self._checked:
            self._checked.save(self.file)

    def notes(self) -> Iterator[str]:
        """One line for each way in which the dataset differs from what lies on the disk."""
        if self._scans and self.bad_images == "skip" and self._checked.skipped:
            where = f", listed in {self.file}" if self.file else ""
            yield f"left out {len(self._checked.skipped)} of {self._checked.images} images, which cannot be used{where}"
        if self.splits.held_out:
            yield f"{len(self.splits.test)} labelled images are held out for the test, for lack of others"
        if self._apart[1]:
            yield f"{self._apart[1]} unlabelled images are test or validation images, and are not distilled on"

    @property
    def _scans(self) -> bool:
        return self.reader.own if self.scan is None else self.scan

    @cached_property
    def _listed(self) -> Splits:
        splits = self.reader.read()
        if self.skip_list is None:
            return splits
        listed = read_skip_list(Path(self.skip_list).expanduser())
        named = listed.intersection(splits.sources)
        if listed and not named:
            example = next(iter(splits.sources), "photos/1.jpg")
            raise DataError(f"skip list {self.skip_list} names no image of {splits.origin}: write paths as {example}")
        return leave_out(splits, named)

    @cached_property
    def _checked(self) -> Checked:
        """The remembered result for these images, or a new one."""
        return Checked.look(self._listed.sources, self._listed.open_image, self.file)


def leave_out(splits: Splits, sources: Collection[str]) -> Splits:
    """Leave images out of a dataset; DataError if a class has none left to train on."""
    gone = frozenset(sources)
    if not gone:
        return splits
    train, val, test = (
        tuple(record for record in records if record.source not in gone)
        for records in (splits.train, splits.val, splits.test)
    )
    for label in sorted({record.label for record in splits.train} - {record.label for record in train}):
        said = f"class {splits.class_names[label]!r} of {splits.origin} has no training image that can be used"
        raise DataError(f"{said}: add some, or remove the class")
    unlabeled = splits.unlabeled
    if unlabeled is not None:
        unlabeled = select(Names.of(unlabeled), (source not in gone for source in unlabeled))
    return replace(splits, train=train, val=val, test=test, unlabeled=unlabeled)
