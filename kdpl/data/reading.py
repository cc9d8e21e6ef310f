"""Dataset as a run takes it: read once and decoded, without unusable images, with test images."""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from kdpl.data.archives import archives
from kdpl.data.names import Names, select
from kdpl.data.parallel import in_parallel
from kdpl.data.sampling import hold_out, keep_apart, require_apart
from kdpl.data.sources import OwnImages, decode_and_digest
from kdpl.data.splits import Reader, Record, Splits, labels_of
from kdpl.data.storage import read_list
from kdpl.errors import ConfigError, DataError
from kdpl.runtime.files import atomic_path
from kdpl.runtime.run_folder import DECODED_FILE

BadImages = Literal["error", "skip"]

_SHOWN = 10


class Checked(BaseModel):
    """The result of decoding all ``images`` of a dataset, whose list has the digest ``names``.

    ``skipped`` are those that cannot be used, each with the reason as half a sentence that names
    it. ``digests`` are those of the contents of images that have the same one as another, of which
    one is among the first ``measured``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[3] = 3
    names: str
    images: int
    measured: int
    skipped: dict[str, str]
    digests: dict[str, str]

    @classmethod
    def decode_all(
        cls, sources: Sequence[str], decode: Callable[[str], Image | str], measured: int = 0
    ) -> "Checked":
        """Decode every image, in parallel under a progress bar.

        Args:
            sources: The images.
            decode: Opens one; or also returns the digest of its content, which it has to for
                ``measured`` above 0.
            measured: Number of images, the first ones, of which copies are looked for.
        """
        skipped, digests = dict[str, str](), dict[str, str]()
        contents = set[str]()
        arranged = archives().pool(Names.of(sources)).sources
        results = in_parallel(
            partial(try_decoding, decode=decode), arranged, "looking at all images"
        )
        for number, (source, (fault, digest)) in enumerate(zip(sources, results, strict=True)):
            if fault is not None:
                # without what to do about it
                skipped[source] = fault.rpartition(": ")[0]
            elif number < measured:
                contents.add(digest)
            if digest in contents:
                digests[source] = digest
        counts = Counter(digests.values())
        return cls(
            names=digest_names(sources),
            images=len(sources),
            measured=measured,
            skipped=skipped,
            digests={source: digest for source, digest in digests.items() if counts[digest] > 1},
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


def try_decoding(source: str, decode: Callable[[str], Image | str]) -> tuple[str | None, str]:
    """Decode an image; returns its fault or None, and what ``decode`` returns if that is text."""
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
    _checked: Checked | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.bad_images not in ("error", "skip"):
            raise ConfigError(f"bad_images {self.bad_images!r} is unknown: choose error or skip")
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
    def _apart(self) -> tuple[Splits, int, dict[str, tuple[str, str]]]:
        """Dataset without test or validation images in other parts, and what was left out.

        What was left out is the number of unlabelled images that are test or validation images, and
        the ``copies_of_measured``.
        """
        splits, checked = self._listed, self._check(look=self.bad_images == "skip")
        if checked and self.bad_images == "skip":
            splits = leave_out(splits, checked.skipped)
        if self.held_out is not None:
            splits = hold_out(splits, self.held_out)
        splits, same = keep_apart(splits)
        copies = copies_of_measured(splits, checked.digests) if checked else {}
        splits = leave_out(splits, copies, "but copies of test or validation images")
        return splits, same, copies

    def prepare(self, trains: bool) -> None:
        """Decode all images, unless that was done or is not asked for, and remember the result.

        DataError if some cannot be used, ``bad_images`` is ``error``, and the run ``trains``.
        """
        checked = self._check(look=trains or self.bad_images == "skip")
        if checked is None:
            return
        if trains and self.bad_images != "skip":
            checked.require_none()
        if self.file and Checked.load(self.file) != checked:
            checked.save(self.file)

    def notes(self) -> Iterator[str]:
        """One line for each way in which the dataset differs from what lies on the disk."""
        splits, same, copies = self._apart
        checked = self._check(look=False)
        if checked and checked.skipped and self.bad_images == "skip":
            where = f", listed in {self.file}" if self.file else ""
            yield (
                f"left out {len(checked.skipped)} of {checked.images} images, "
                f"which cannot be used{where}"
            )
        if splits.held_out:
            yield (
                f"{len(splits.test)} labelled images are held out for the test, because there "
                "are no test images"
            )
        if same:
            yield (
                f"{same} unlabelled images are test or validation images, and are not distilled on"
            )
        if copies:
            counts = Counter(part for part, _ in copies.values())
            counted = ", ".join(f"{number} {part}" for part, number in counts.items())
            copy, (_, kept) = next(iter(copies.items()))
            yield (
                f"left out as copies of test or validation images: {counted} "
                f"({copy} is a copy of {kept})"
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

    def _check(self, look: bool) -> Checked | None:
        """The remembered result for these images, or, to ``look`` at them, a new one.

        None if there is none, or the images are trusted.
        """
        if not self._scans:
            return None
        if self._checked is None and self.file:
            known = Checked.load(self.file)
            # a run's images are fixed when it begins, whatever becomes of them later
            if known and known.measured == self._measured:
                same = known.names == digest_names(self._listed.sources)
                self._checked = known if same else None
        if self._checked is None and look:
            decode: Callable[[str], Image | str] = self._listed.open_image
            if self._measured:
                decode = partial(decode_and_digest, decoding=self.reader.decoding)
            self._checked = Checked.decode_all(self._listed.sources, decode, self._measured)
        return self._checked

    @property
    def _measured(self) -> int:
        """Number of images, first in the list, that are or may become test or validation images."""
        splits = self._listed
        if not isinstance(self.reader, OwnImages):
            return 0
        drawn_from = splits.train if self.held_out is not None and not splits.test else ()
        return len(splits.test) + len(splits.val) + len(drawn_from)


def leave_out(splits: Splits, sources: Collection[str], left: str = "that can be used") -> Splits:
    """Leave images out of a dataset; DataError if a class has none ``left`` to train on."""
    gone = frozenset(sources)
    if not gone:
        return splits
    train, val, test = (
        tuple(record for record in records if record.source not in gone)
        for records in (splits.train, splits.val, splits.test)
    )
    trained = {label for record in train for label in labels_of(record)}
    before = {label for record in splits.train for label in labels_of(record)}
    for label in sorted(before - trained):
        problem = (
            f"class {splits.class_names[label]!r} of {splits.origin} has no training image {left}"
        )
        raise DataError(f"{problem}: add some, or remove the class")
    unlabeled = splits.unlabeled
    if unlabeled is not None:
        unlabeled = select(Names.of(unlabeled), (source not in gone for source in unlabeled))
    return replace(splits, train=train, val=val, test=test, unlabeled=unlabeled)


def copies_of_measured(splits: Splits, digests: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Find copies of test images, and of validation images that are not test images.

    Returns for each copy the part that it is in, and the image that it is a copy of.
    """
    copies, first = dict[str, tuple[str, str]](), dict[str, tuple[str, str]]()
    parts: dict[str, Iterable[Record]] = {
        "test": splits.test,
        "val": splits.val,
        "train": splits.train,
        "unlabelled": (Record(source, -1) for source in splits.unlabeled or ()),
    }
    for part, records in parts.items():
        for source, _ in records:
            if (digest := digests.get(source)) is None:
                continue
            if part in ("test", "val"):
                first.setdefault(digest, (part, source))
            of, kept = first.get(digest, (part, source))
            if of != part:
                copies[source] = part, kept
    return copies
