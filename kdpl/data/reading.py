"""Dataset as a run takes it: read once, without what is left out, with test images."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from kdpl.data.sampling import hold_out, keep_apart, require_apart
from kdpl.data.splits import Reader, Splits
from kdpl.errors import ConfigError
from kdpl.runtime.run_folder import DECODED_FILE

BadImages = Literal["error", "skip"]


class Scan(Protocol):
    """A look at all images of a dataset, as a room provides it by an entry point ``kdpl.scans``.

    The entry point names a function of the ``Reading``.
    """

    def prepare(self, trains: bool) -> None:
        """Look at all images, unless that was done or is not asked for, and remember the result.

        DataError if some cannot be used, ``bad_images`` is ``error``, and the run ``trains``.
        """
        ...

    def without_listed(self, splits: Splits) -> Splits:
        """Leave the images of ``skip_list`` out of a dataset as it was read."""
        ...

    def usable(self, splits: Splits) -> Splits:
        """Leave images out that cannot be used, if ``bad_images`` is ``skip``."""
        ...

    def without_copies(self, splits: Splits) -> Splits:
        """Leave copies of test and validation images out of the other parts."""
        ...

    def notes(self) -> Iterator[str]:
        """One line for each kind of image that is left out."""
        ...


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
    _scan: Scan | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.bad_images not in ("error", "skip"):
            raise ConfigError(f"bad_images {self.bad_images!r} is unknown: choose error or skip")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ConfigError(
                f"held_out must be above 0 and below 1, not {self.held_out}: leave it out for none"
            )
        from kdpl.data.scan.scan import DecodeAll

        self._scan = DecodeAll(self)

    @property
    def looks(self) -> bool:
        """Whether all images are looked at before a fit, and copies are left out."""
        return self.reader.own if self.scan is None else self.scan

    def of_run(self, folder: Path) -> None:
        """Use the images that the run in this folder used; to be called before anything is read."""
        self.file = folder / DECODED_FILE

    @cached_property
    def splits(self) -> Splits:
        """The dataset, before protocol and sampling; read on first use."""
        return self._apart[0]

    @cached_property
    def _apart(self) -> tuple[Splits, int]:
        """Dataset without test or validation images in other parts.

        Beside it the number of unlabelled images that are test or validation images.
        """
        splits = self.listed
        if self._scan is not None:
            splits = self._scan.usable(splits)
        if self.held_out is not None:
            splits = hold_out(splits, self.held_out)
        splits, same = keep_apart(splits)
        if self._scan is not None:
            splits = self._scan.without_copies(splits)
        return splits, same

    def prepare(self, trains: bool) -> None:
        """Look at all images before a run that ``trains`` or not, see ``Scan``."""
        if self._scan is not None:
            self._scan.prepare(trains)

    def notes(self) -> Iterator[str]:
        """One line for each way in which the dataset differs from what lies on the disk."""
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
        if self._scan is not None:
            yield from self._scan.notes()

    @cached_property
    def listed(self) -> Splits:
        """The dataset as it is read, without the images of the skip list."""
        splits = self.reader.read()
        if self._scan is not None:
            splits = self._scan.without_listed(splits)
        if self.reader.own:
            require_apart(splits)
        return splits
