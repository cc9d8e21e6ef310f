"""Dataset as a run uses it: read once, without images that are left out, with test images."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path

from kdpl.data.options import ReadingOptions
from kdpl.data.sampling import hold_out, keep_apart, require_apart
from kdpl.data.scan.checked import Checked, copies_of_measured, decode_and_digest
from kdpl.data.scan.skip_list import leave_out, without_listed
from kdpl.data.sources import OwnImages
from kdpl.data.splits import Reader, Splits
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import difference, digest
from kdpl.runtime.run_folder import DECODED_FILE


@dataclass
class Reading:
    """Dataset read with the settings of ``DomainDataModule``.

    ``file`` stores the result of checking the images.
    """

    reader: Reader
    options: ReadingOptions = ReadingOptions()
    file: Path | None = None
    _scan: "_Scan" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._scan = _Scan(self)

    @property
    def looks(self) -> bool:
        """True if all images are checked before a fit, and copies left out."""
        scan = self.options.scan
        return self.reader.own if scan is None else scan

    def of_run(self, folder: Path) -> None:
        """Use the same images as the run in this folder; call it before anything is read."""
        self.file = folder / DECODED_FILE

    @cached_property
    def splits(self) -> Splits:
        """The dataset, before protocol and sampling; read on first use."""
        return self._apart[0]

    @cached_property
    def _apart(self) -> tuple[Splits, int]:
        """Dataset without test or validation images in other parts.

        Also the number of unlabelled images that are test or validation images.
        """
        # the order decides what is held out: never an image that cannot be used
        splits = self.listed
        splits = self._scan.usable(splits)
        if self.options.test_share:
            splits = hold_out(splits, self.options.test_share)
        splits, same = keep_apart(splits)
        splits = self._scan.without_copies(splits)
        return splits, same

    def prepare(self, trains: bool) -> None:
        """Check all images before a run that ``trains`` or not, unless that was done.

        DataError if some cannot be used, ``bad_images`` is ``error``, and the run ``trains``.
        """
        self._scan.prepare(trains)

    def notes(self) -> Iterator[str]:
        """Yield a line for each difference between the dataset and the files on disk."""
        splits, same = self._apart
        if splits.held_out:
            yield (
                f"{len(splits.test)} labelled images are held out for the test, because there "
                "are no test images"
            )
        if same:
            yield (
                f"{same} unlabelled images are test or validation images, and are not distilled on"
            )
        yield from self._scan.notes()

    @cached_property
    def listed(self) -> Splits:
        """Dataset as it is read, without the images of the skip list."""
        splits = self._scan.without_listed(self.reader.read())
        if self.reader.own:
            require_apart(splits)
        return splits


class _Scan:
    """Check of all images of a dataset: decodes them once and stores the result."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._skips = reading.options.bad_images == "skip"
        self._checked: Checked | None = None
        self._copies: dict[str, tuple[str, str]] = {}

    def prepare(self, trains: bool) -> None:
        """Decode all images, unless that was done or is not needed, and store the result.

        DataError if some cannot be used, ``bad_images`` is ``error``, and the run ``trains``.
        """
        checked, file = self._check(look=trains or self._skips), self._reading.file
        if checked is None:
            return
        if trains and not self._skips:
            checked.require_none()
        if file and Checked.load(file) != checked:
            checked.save(file)

    def without_listed(self, splits: Splits) -> Splits:
        """Leave out the images of ``skip_list``."""
        file = self._reading.options.skip_list
        return splits if file is None else without_listed(splits, file)

    def usable(self, splits: Splits) -> Splits:
        """Leave out images that cannot be used, if ``bad_images`` is ``skip``."""
        checked = self._check(look=self._skips)
        return leave_out(splits, checked.skipped) if checked and self._skips else splits

    def without_copies(self, splits: Splits) -> Splits:
        """Leave out copies of test and validation images in the other parts."""
        checked = self._check(look=self._skips)
        self._copies = copies_of_measured(splits, checked.digests) if checked else {}
        return leave_out(splits, self._copies, "but copies of test or validation images")

    def notes(self) -> Iterator[str]:
        """Yield a line for each difference between the dataset and the files on disk."""
        checked, file = self._check(look=False), self._reading.file
        if checked and checked.skipped and self._skips:
            where = f", listed in {file}" if file else ""
            yield (
                f"left out {len(checked.skipped)} of {checked.images} images, "
                f"which cannot be used{where}"
            )
        if self._copies:
            counts = Counter(part for part, _ in self._copies.values())
            counted = ", ".join(f"{number} {part}" for part, number in counts.items())
            copy, (_, kept) = next(iter(self._copies.items()))
            yield (
                f"left out as copies of test or validation images: {counted} "
                f"({copy} is a copy of {kept})"
            )

    def _check(self, look: bool) -> Checked | None:
        """Return the stored result for these images, a new one if told to ``look``, or None."""
        if not self._reading.looks or self._checked is not None:
            return self._checked
        listed, file, measured = self._reading.listed, self._reading.file, self._measured
        # whether an image can be used depends on these
        decoding = self._reading.reader.decoding
        origin = {
            "images": digest(listed.sources),
            "test and validation images": measured,
            "decoding": asdict(decoding),
        }
        if file and (earlier := Checked.load(file)):
            # a run's images are fixed when it begins, even if the files change later
            if (differs := difference(earlier.made_from, origin)) is None:
                self._checked = earlier
            elif look:
                inform(f"{file} is of another dataset ({differs[1]}): looking at all images again")
        if self._checked is None and look:
            # digests are needed only to find copies of measured images
            decode = partial(decode_and_digest, decoding=decoding)
            self._checked = Checked.decode_all(
                listed.sources, decode if measured else listed.open_image, measured, origin
            )
        return self._checked

    @property
    def _measured(self) -> int:
        """Number of images, first in the list, that are or may become test or validation images."""
        splits = self._reading.listed
        if not isinstance(self._reading.reader, OwnImages):
            return 0
        draws = self._reading.options.test_share > 0 and not splits.test
        drawn_from = splits.train if draws else ()
        return len(splits.test) + len(splits.val) + len(drawn_from)
