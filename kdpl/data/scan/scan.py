"""Which images of a dataset cannot be used, and which are copies of test or validation images."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial

from kdpl.data.decoding import Decoding, open_image
from kdpl.data.reading import Reading
from kdpl.data.scan.checked import Checked
from kdpl.data.scan.skip_list import leave_out, without_listed
from kdpl.data.sources import OwnImages, content_of, digest_of_content
from kdpl.data.splits import Record, Splits
from kdpl.runtime.messages import inform
from kdpl.runtime.origin import difference, digest


class DecodeAll:
    """The ``Scan`` of a dataset, which decodes all images once and remembers the result."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._skips = reading.bad_images == "skip"
        self._checked: Checked | None = None
        self._copies: dict[str, tuple[str, str]] = {}

    def prepare(self, trains: bool) -> None:
        """Decode all images, unless that was done or is not asked for, and remember the result.

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
        """Leave the images of ``skip_list`` out of a dataset as it was read."""
        file = self._reading.skip_list
        return splits if file is None else without_listed(splits, file)

    def usable(self, splits: Splits) -> Splits:
        """Leave images out that cannot be used, if ``bad_images`` is ``skip``."""
        checked = self._check(look=self._skips)
        return leave_out(splits, checked.skipped) if checked and self._skips else splits

    def without_copies(self, splits: Splits) -> Splits:
        """Leave copies of test and validation images out of the other parts."""
        checked = self._check(look=self._skips)
        self._copies = copies_of_measured(splits, checked.digests) if checked else {}
        return leave_out(splits, self._copies, "but copies of test or validation images")

    def notes(self) -> Iterator[str]:
        """One line for each way in which the dataset differs from what lies on the disk."""
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
        """The remembered result for these images, or, to ``look`` at them, a new one; or None."""
        if not self._reading.looks or self._checked is not None:
            return self._checked
        listed, file, measured = self._reading.listed, self._reading.file, self._measured
        decoding = self._reading.reader.decoding
        origin = {
            "images": digest(listed.sources),
            "test and validation images": measured,
            "decoding": asdict(decoding),
        }
        if file and (earlier := Checked.load(file)):
            # a run's images are fixed when it begins, whatever becomes of them later
            if (differs := difference(earlier.made_from, origin)) is None:
                self._checked = earlier
            elif look:
                inform(f"{file} is of another dataset ({differs[1]}): looking at all images again")
        if self._checked is None and look:
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
        drawn_from = splits.train if self._reading.held_out is not None and not splits.test else ()
        return len(splits.test) + len(splits.val) + len(drawn_from)


def decode_and_digest(source: str, decoding: Decoding) -> str:
    """Open an image as ``open_source`` does, and return the digest of the bytes read for it."""
    content = content_of(source)
    open_image(source, content, decoding)
    return digest_of_content(content)


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
