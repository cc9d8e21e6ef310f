"""Dataset as a run uses it: read once, without images that are left out, with test images."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

from kdpl.data.checked import Checked
from kdpl.data.identity import FILES, files_of
from kdpl.data.inspection import Inspected, inspect
from kdpl.data.names import Names, select
from kdpl.data.options import ReadingOptions
from kdpl.data.paths import read_list
from kdpl.data.sampling import hold_out, keep_apart, measured_again, require_apart
from kdpl.data.sources import OwnImages
from kdpl.data.splits import Reader, Splits
from kdpl.errors import DataError
from kdpl.runtime.files import read_cells
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import difference, digest
from kdpl.runtime.run_folder import DECODED_FILE

_SHOWN = 10  # images that a message names


class Reading:
    """Dataset read with the settings of ``DomainDataModule``."""

    def __init__(self, reader: Reader, options: ReadingOptions) -> None:
        self.reader, self.options = reader, options
        self.file: Path | None = None
        self._checked: Checked | None = None
        # left out of other parts: copies of test or validation images, each with its part and what
        # it is a copy of, and the number of these images themselves
        self._copies: dict[str, tuple[str, str]] = {}
        self._same = 0

    @property
    def is_scanned(self) -> bool:
        """True if all images are checked before a fit, and copies of ``OwnImages`` left out."""
        scan = self.options.scan
        return self.reader.from_user if scan is None else scan

    @property
    def _skips(self) -> bool:
        return self.options.bad_images == "skip"

    def of_run(self, folder: Path) -> None:
        """Use the same images as the run in this folder; call it before anything is read."""
        self.file = folder / DECODED_FILE

    @cached_property
    def listed(self) -> Splits:
        """Dataset as it is read, without the images of the skip list."""
        splits, skip_list = self.reader.read(), self.options.skip_list
        if skip_list is not None:
            listed = _read_skip_list(Path(skip_list).expanduser())
            named = listed.intersection(splits.sources)
            if listed and not named:
                example = next(iter(splits.sources), "photos/1.jpg")
                raise DataError(
                    f"skip list {skip_list} names no image of {splits.origin}: write paths as "
                    f"{example}"
                )
            splits = _leave_out(splits, named)
        if self.reader.from_user:
            require_apart(splits)
        return splits

    @cached_property
    def splits(self) -> Splits:
        """The dataset, before protocol and sampling; read on first use.

        No other part has test or validation images, or copies of them.
        """
        # the order decides what is held out: never an image that cannot be used
        splits, checked = self.listed, self.check(look=self._skips)
        if checked and self._skips:
            splits = _leave_out(splits, checked.skipped)
        if self.options.test_share:
            splits = hold_out(splits, self.options.test_share)
        splits, self._same = keep_apart(splits)
        if checked:
            digests, unlabeled = checked.digests, splits.unlabeled or ()
            again = measured_again(splits, unlabeled, lambda names: map(digests.get, names))
            self._copies = {source: (part, kept) for source, part, kept, _ in again}
        return _leave_out(splits, self._copies, "but copies of test or validation images")

    def scan(self, trains: bool, inspected: Mapping[str, Inspected] | None = None) -> None:
        """Check all images, unless that was done; DataError for a bad one if the run ``trains``.

        Images that were ``inspected`` in the default decoding are not looked at again.
        """
        checked = self.check(trains or self._skips, trains, inspected)
        if checked is None:
            return
        if trains and checked.skipped and not self._skips:
            named = [*checked.skipped.values()]
            more = [f"and {len(named) - _SHOWN} more"] if len(named) > _SHOWN else []
            raise DataError(
                f"{len(named)} of {checked.images} images cannot be used "
                f"({'; '.join(named[:_SHOWN] + more)}): convert, replace or remove them, or set "
                "data.init_args.reading.bad_images to skip"
            )
        if self.file and Checked.load(self.file) != checked:
            checked.save(self.file)

    def notes(self) -> Iterator[str]:
        """Yield a line for each difference between the dataset and the files on disk."""
        if self.splits.held_out:
            held_out = f"{len(self.splits.test)} labelled images are held out for the test"
            yield f"{held_out}, because there are no test images"
        if self._same:
            yield (
                f"{self._same} unlabelled images are test or validation images, "
                "and are not distilled on"
            )
        checked = self.check()
        if checked and checked.skipped and self._skips:
            where = f", listed in {self.file}" if self.file else ""
            yield (
                f"left out {len(checked.skipped)} of {checked.images} images, "
                f"which cannot be used{where}"
            )
        if self._copies:
            near = set(self._copies).intersection(checked.near_copies if checked else ())
            exact = self._copies.keys() - near
            for copies, kind in ((exact, "copies"), (near, "near-copies")):
                yield from self._note_of(copies, kind)

    def _note_of(self, copies: Collection[str], kind: str) -> Iterator[str]:
        left_out = {copy: of for copy, of in self._copies.items() if copy in copies}
        if left_out:
            counts = Counter(part for part, _ in left_out.values())
            counted = ", ".join(f"{number} {part}" for part, number in counts.items())
            copy, (_, kept) = next(iter(left_out.items()))
            where = f", all in {self.file}" if self.file and kind == "near-copies" else ""
            yield (
                f"left out as {kind} of test or validation images: {counted} "
                f"({copy} is a {kind.replace('ies', 'y')} of {kept}){where}"
            )

    def check(
        self,
        look: bool = False,
        trains: bool = False,
        inspected: Mapping[str, Inspected] | None = None,
    ) -> Checked | None:
        """Return the stored result for these images, a new one if told to ``look``, or None.

        A test takes the result of its fit. A fit, which ``trains``, looks at changed files again;
        DataError if they have other contents than when it began.
        """
        if not self.is_scanned or self._checked is not None:
            return self._checked
        # whether an image can be used depends on these
        decoding, measured = self.reader.decoding, self._measured
        origin = {
            "images": digest(self.listed.sources),
            "test and validation images": measured,
            "decoding": asdict(decoding),
            "near-copies": self.options.near_copies,
            **(files_of(self.listed.sources) if trains else {}),
        }
        stored = Checked.load(self.file) if self.file else None
        before = {name: stored.made_from.get(name) for name in origin} if stored else None
        if (differs := difference(before, origin)) is None:
            self._checked = stored
        elif look:
            name, words = differs
            if stored:
                inform(f"{self.file} is of other images ({words}): looking at all images again")
            splits, is_file = self.listed, isinstance(self.reader, OwnImages)
            opener = None if is_file else splits.open_image
            pictures = self.options.near_copies and measured > 0
            results = (
                inspect(
                    splits.sources, "looking at all images", opener, decoding, pictures=pictures
                )
                if inspected is None
                else map(inspected.__getitem__, splits.sources)
            )
            apart = len(splits.test) + len(splits.val)
            checked = Checked.of(splits.sources, results, apart, measured, origin)
            if stored and name in FILES and checked.contents != stored.contents:
                raise DataError(
                    f"images have changed since {self.file} was written ({words}): put them back, "
                    "or choose another folder"
                )
            self._checked = checked
        return self._checked

    @property
    def _measured(self) -> int:
        """Number of images, first in the list, that are or may become test or validation images."""
        if not isinstance(self.reader, OwnImages):
            return 0
        draws = self.options.test_share > 0 and not self.listed.test
        drawn_from = self.listed.train if draws else ()
        return len(self.listed.test) + len(self.listed.val) + len(drawn_from)


def _read_skip_list(file: Path) -> frozenset[str]:
    # paths on the lines of a .txt, or in the first column of a .csv
    if not file.is_file():
        raise DataError(f"skip list {file} does not exist: check reading.skip_list")
    if file.suffix == ".txt":
        return frozenset(read_list(file))
    if file.suffix != ".csv":
        raise DataError(f"skip list {file} is of an unknown kind: give a .txt or .csv file")
    return frozenset(row[0] for _, row in read_cells(file, "skip list", "surrogateescape"))


def _leave_out(splits: Splits, sources: Collection[str], left: str = "that can be used") -> Splits:
    """Leave images out of a dataset; DataError if a class has none ``left`` to train on."""
    gone = frozenset(sources)
    if not gone:
        return splits
    # filter the labelled parts, and check that each class can still be trained on
    train, val, test = (
        tuple(record for record in records if record.source not in gone)
        for records in (splits.train, splits.val, splits.test)
    )
    trained = {label for record in train for label in record.labels}
    before = {label for record in splits.train for label in record.labels}
    for label in sorted(before - trained):
        raise DataError(
            f"class {splits.class_names[label]!r} of {splits.origin} has no training image {left}: "
            "add some, or remove the class"
        )
    unlabeled = Names.of(splits.unlabeled or ())
    unlabeled = select(unlabeled, (source not in gone for source in unlabeled))
    return replace(splits, train=train, val=val, test=test, unlabeled=unlabeled)
