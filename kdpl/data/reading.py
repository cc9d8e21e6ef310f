"""A dataset as a run takes it: read once, without the images that cannot be used, with test images of some kind."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from kdpl.data.sampling import hold_out, keep_apart
from kdpl.data.scan import Checked, digest_names, read_skip_list
from kdpl.data.splits import Reader, Splits
from kdpl.errors import ConfigError, DataError

BadImages = Literal["error", "skip"]


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
            yield (
                f"{len(self.splits.test)} of the labelled images of {self.splits.origin}, which has no other test "
                "images, are held out for the test"
            )
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
        sources = self._listed.sources
        known = Checked.load(self.file) if self.file else None
        # a run's images are fixed when it begins, whatever becomes of them later
        if known is not None and known.names == digest_names(sources):
            return known
        return Checked.look(sources, self._listed.open_image)


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
    unlabeled = splits.unlabeled and tuple(source for source in splits.unlabeled if source not in gone)
    return replace(splits, train=train, val=val, test=test, unlabeled=unlabeled)
