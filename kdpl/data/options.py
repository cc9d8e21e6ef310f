"""Settings of ``DomainDataModule`` in groups: classes, and the reading of images."""

from dataclasses import dataclass
from typing import Literal

from kdpl.errors import ConfigError


@dataclass(frozen=True)
class ClassOptions:
    """Settings of the names, texts and labels of classes.

    Args:
        names: CSV file that maps class folders or labels to names, and one or more texts for the
            text tower (``folder`` and ``table``), or a .txt list of names; None: folders or labels
            are the names. Without labelled training images, the classes are those in this file.
        text: Text that the text tower reads for a class, with ``{}`` instead of the name or of each
            text (``folder`` and ``table``).
        label_separator: Character between the labels of an image (``table``), each of which may
            then have several or none; None: each image is of one class.
    """

    names: str | None = None
    text: str | None = None
    label_separator: str | None = None


@dataclass(frozen=True)
class ReadingOptions:
    """Settings of the reading of images, and of images that are left out or held out.

    Args:
        background: Colour [red, green, blue], 0 to 255, on which transparent images are put
            (``folder`` and ``table``); None: white. The benchmark's images lose their transparency,
            and their orientation tags are not followed.
        bad_images: Treatment of images that cannot be decoded: ``error`` names them before anything
            is trained, ``skip`` leaves them out.
        near_copies: Leave near-copies of test and validation images out, too: the same picture
            saved anew, resized, slightly cropped or turned.
        scan: Decode all images before a fit to find invalid ones, and leave copies of test and
            validation images out of the rest (``folder`` and ``table``); None: true for your
            images, false for a benchmark's.
        skip_list: File of images to leave out: a ``.txt``, or a ``.csv``.
        test_share: Share of each class's training images that become test images, at least 0 and
            below 1, if there are no other test images; 0: none.
    """

    background: tuple[int, int, int] | None = None
    bad_images: Literal["error", "skip"] = "error"
    near_copies: bool = True
    scan: bool | None = None
    skip_list: str | None = None
    test_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.test_share < 1:
            raise ConfigError(
                f"reading.test_share must be at least 0 and below 1, not {self.test_share}"
            )
