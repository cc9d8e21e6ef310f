"""Dataset as a run takes it: read once and decoded, without unusable images, with test images."""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from kdpl.data.archives import pool_of
from kdpl.data.found import FoundImage, leave_out_copies
from kdpl.data.names import Names, inodes, select
from kdpl.data.parallel import in_parallel
from kdpl.data.sampling import hold_out, keep_apart, require_apart
from kdpl.data.sources import OwnImages, decode_and_digest
from kdpl.data.splits import Reader, Record, Splits
from kdpl.data.storage import read_list
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.files import atomic_path
from kdpl.runtime.run_folder import DECODED_FILE

BadImages = Literal["error", "skip"]

_SHOWN = 10
_KEPT = 10_000  # images after which is remembered how far it got


class Checked(BaseModel):
    """The result of decoding all ``images`` of a dataset, whose list has the digest ``names``.

    ``skipped`` are those that cannot be used, each with the reason as half a sentence that names
    it. ``digests`` are those of the contents of images that have the same one as another, of which
    one is among the first ``measured``. Fewer are ``looked`` at if it was interrupted; then all of
    these that were have a digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[2] = 2
    names: str
    images: int
    measured: int
    skipped: dict[str, str]
    digests: dict[str, str]
    looked: int

    @classmethod
    def decode_all(
        cls,
        sources: Sequence[str],
        decode: Callable[[str], Image | str],
        file: Path | None = None,
        measured: int = 0,
    ) -> "Checked":
        """Decode every image, in parallel under a progress bar.

        Args:
            sources: The images.
            decode: Opens one; or also returns the digest of its content, which it has to for
                ``measured`` above 0.
            file: Remembers those that are done already.
            measured: Number of images, the first ones, of which copies are looked for.
        """
        names, known = digest_names(sources), cls.load(file) if file else None
        new = cls(
            names=names, images=len(sources), measured=measured, skipped={}, digests={}, looked=0
        )
        if known is None or (known.names, known.measured) != (names, measured):
            known = new
        # a run's images are fixed when it begins, whatever becomes of them later
        if known.looked == len(sources):
            return known
        # before that, bad ones may be replaced
        bad = [source for source in sources[: known.looked] if source in known.skipped]
        looked, first = (
            [*_decode_each(bad, decode, "looking at bad images again")],
            frozenset(sources[:measured]),
        )
        if known.looked > measured and any(
            source in first for source, fault, _ in looked if fault is None
        ):
            # images that were looked at since may be copies of it
            known, looked = new, []
        skipped, digests = dict[str, str](), dict(known.digests)
        contents = set(digests.values())
        rest = _decode_each(
            pool_of(Names.of(sources[known.looked :])).sources, decode, "looking at all images"
        )
        for done, (source, fault, digest) in enumerate(
            chain(looked, rest), start=known.looked - len(looked) + 1
        ):
            if fault is not None:
                skipped[source] = fault
            elif source in first:
                contents.add(digest)
            if digest in contents:
                digests[source] = digest
            if file and done % _KEPT == 0 and known.looked < done < len(sources):
                known.model_copy(
                    update={"skipped": skipped, "digests": digests, "looked": done}
                ).save(file)
        counts = Counter(digests.values())
        return known.model_copy(
            update={
                # without what to do about it
                "skipped": {source: fault.rpartition(": ")[0] for source, fault in skipped.items()},
                "digests": {
                    source: digest for source, digest in digests.items() if counts[digest] > 1
                },
                "looked": len(sources),
            }
        )

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
        problem = (
            f"{len(named)} of {self.images} images cannot be used "
            f"({'; '.join(named[:_SHOWN] + more)})"
        )
        raise DataError(
            f"{problem}: convert, replace or remove them, or set data.init_args.bad_images to skip"
        )


def faults_of(
    sources: Sequence[str],
    open_image: Callable[[str], Image],
    title: str,
    workers: int | None = None,
) -> Iterator[tuple[str, str]]:
    """Decode every image; yields those that fail, with the message."""
    results = _decode_each(sources, open_image, title, workers)
    return ((source, fault) for source, fault, _ in results if fault is not None)


def _decode_each(
    sources: Sequence[str],
    decode: Callable[[str], Image | str],
    title: str,
    workers: int | None = None,
) -> Iterator[tuple[str, str | None, str]]:
    """Decode every image; yields its source, its fault or None, and its digest or nothing.

    The digest is what ``decode`` returns, if that is text.
    """
    results = in_parallel(partial(_try_decoding, decode=decode), sources, title, workers)
    return ((source, *each) for source, each in zip(sources, results, strict=True))


def _try_decoding(source: str, decode: Callable[[str], Image | str]) -> tuple[str | None, str]:
    try:
        decoded = decode(source)
    except DataError as error:
        return str(error), ""
    # an image would have to travel between processes
    return None, decoded if isinstance(decoded, str) else ""


def digest_names(sources: Iterable[str]) -> str:
    """Digest a list of images."""
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        digest.update(os.fsencode(source) + b"\0")
    return digest.hexdigest()


def read_skip_list(file: Path) -> frozenset[str]:
    """Read a skip list; DataError if the file is missing, of another kind or unreadable.

    It is a ``.txt`` file with a path on each line, or a ``.csv`` file with the path in its first
    column.
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
    """Reading of a dataset by the settings of ``DomainDataModule``.

    ``file`` remembers which images can be used.
    """

    reader: Reader
    bad_images: BadImages = "error"
    scan: bool | None = None
    skip_list: str | None = None
    held_out: float | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.bad_images not in get_args(BadImages):
            raise ConfigError(
                f"bad_images {self.bad_images!r} is unknown: choose "
                f"{' or '.join(get_args(BadImages))}"
            )
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ConfigError(
                f"held_out must be above 0 and below 1, not {self.held_out}: leave it out for none"
            )

    def of_run(self, folder: Path) -> None:
        """Use the images that the run in this folder used; to be called before anything is read."""
        self.file = folder / DECODED_FILE

    @cached_property
    def splits(self) -> Splits:
        """The dataset, before protocol and sampling; read on first use."""
        return self._apart[0]

    @cached_property
    def _apart(self) -> tuple[Splits, int, list[tuple[FoundImage, FoundImage]]]:
        """Dataset without test or validation images in other parts, and what was left out.

        What was left out is the number of unlabelled images that are test or validation images, and
        the copies of these.
        """
        splits, digests = self._listed, self._digests
        # a file with several hard links, which has one content under all its names
        require_apart(_with(splits, digests.__contains__), inodes)
        if self._scans and self.bad_images == "skip":
            splits = leave_out(splits, self._checked.skipped)
        if self.held_out is not None:
            splits = hold_out(splits, self.held_out)
        splits, same = keep_apart(splits)
        copies = _copies(splits, digests)
        splits = leave_out(
            splits, [copy.path for copy, _ in copies], "but copies of test or validation images"
        )
        return splits, same, copies

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
            yield (
                f"left out {len(self._checked.skipped)} of {self._checked.images} images, "
                f"which cannot be used{where}"
            )
        if self.splits.held_out:
            yield (
                f"{len(self.splits.test)} labelled images are held out for the test, because there "
                "are no test images"
            )
        _, same, copies = self._apart
        if same:
            yield (
                f"{same} unlabelled images are test or validation images, and are not distilled on"
            )
        if copies:
            counts = Counter(copy.split if copy.label else "unlabelled" for copy, _ in copies)
            counted = ", ".join(f"{number} {split}" for split, number in counts.items())
            copy, kept = copies[0]
            yield (
                f"left out as copies of test or validation images: {counted} "
                f"({copy.path} is a copy of {kept.path})"
            )

    @property
    def _scans(self) -> bool:
        return self.reader.own if self.scan is None else self.scan

    @cached_property
    def _listed(self) -> Splits:
        splits = self._without_skipped(self.reader.read())
        if self.reader.own:
            require_apart(splits)
        return splits

    def _without_skipped(self, splits: Splits) -> Splits:
        if self.skip_list is None:
            return splits
        listed = read_skip_list(Path(self.skip_list).expanduser())
        named = listed.intersection(splits.sources)
        if listed and not named:
            example = next(iter(splits.sources), "photos/1.jpg")
            raise DataError(
                f"skip list {self.skip_list} names no image of {splits.origin}: write "
                f"paths as {example}"
            )
        return leave_out(splits, named)

    @cached_property
    def _checked(self) -> Checked:
        """The remembered result for these images, or a new one."""
        splits = self._listed
        decode: Callable[[str], Image | str] = splits.open_image
        if self._measured:
            decode = partial(decode_and_digest, decoding=self.reader.decoding)
        return Checked.decode_all(splits.sources, decode, self.file, self._measured)

    @cached_property
    def _names(self) -> str:
        """Digest of the names of all images; of millions it takes seconds."""
        return digest_names(self._listed.sources)

    @property
    def _measured(self) -> int:
        """Number of images, first in the list, that are or may become test or validation images."""
        splits = self._listed
        if not isinstance(self.reader, OwnImages):
            return 0
        drawn_from = splits.train if self.held_out is not None and not splits.test else ()
        return len(splits.test) + len(splits.val) + len(drawn_from)

    @property
    def _digests(self) -> Mapping[str, str]:
        """Digests of images that have copies.

        If bad images are errors, these are the ones that a fit has found, if any.
        """
        if not self._scans or not self._measured:
            return {}
        if self.bad_images == "skip":
            return self._checked.digests
        known = Checked.load(self.file) if self.file else None
        # the names last, whose digest takes time
        if (
            known is None
            or not known.digests
            or (known.looked, known.measured) != (known.images, self._measured)
        ):
            return {}
        return known.digests if known.names == self._names else {}


def leave_out(splits: Splits, sources: Collection[str], left: str = "that can be used") -> Splits:
    """Leave images out of a dataset; DataError if a class has none ``left`` to train on."""
    gone = frozenset(sources)
    if not gone:
        return splits
    rest = _with(splits, lambda source: source not in gone)
    for label in sorted(
        {record.label for record in splits.train} - {record.label for record in rest.train}
    ):
        problem = (
            f"class {splits.class_names[label]!r} of {splits.origin} has no training image {left}"
        )
        raise DataError(f"{problem}: add some, or remove the class")
    unlabeled = splits.unlabeled
    if unlabeled is not None:
        unlabeled = select(Names.of(unlabeled), (source not in gone for source in unlabeled))
    return replace(rest, unlabeled=unlabeled)


def _with(splits: Splits, wanted: Callable[[str], bool]) -> Splits:
    """The dataset with those labelled images whose source is ``wanted``."""
    train, val, test = (
        tuple(record for record in records if wanted(record.source))
        for records in (splits.train, splits.val, splits.test)
    )
    return replace(splits, train=train, val=val, test=test)


def _copies(splits: Splits, digests: Mapping[str, str]) -> list[tuple[FoundImage, FoundImage]]:
    """Find copies of test images, and of validation images that are not test images.

    Each copy comes with the image that it is a copy of.
    """
    if not digests:
        return []
    unlabeled = (Record(source, -1) for source in splits.unlabeled or ())
    parts = {"test": splits.test, "val": splits.val, "train": chain(splits.train, unlabeled)}
    images = {
        source: FoundImage(
            source, splits.class_names[label] if label >= 0 else "", split, digest=digests[source]
        )
        for split, records in parts.items()
        for source, label in records
        if source in digests
    }
    return [
        (copy, kept)
        for copy, kept in leave_out_copies([*images.values()])[1]
        if copy.split != kept.split
    ]
