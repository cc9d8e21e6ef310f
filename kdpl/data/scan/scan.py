"""Digests of decoded images, and copies of test and validation images."""

from collections.abc import Iterable, Mapping

from kdpl.data.decoding import Decoding, open_image
from kdpl.data.sources import content_of, digest_of_content
from kdpl.data.splits import Record, Splits


def decode_and_digest(source: str, decoding: Decoding) -> str:
    """Open an image as ``open_source`` does, and return the digest of the bytes read for it."""
    content = content_of(source)
    open_image(source, content, decoding)
    return digest_of_content(content)


def copies_of_measured(splits: Splits, digests: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Find copies of test images, and of validation images that are not test images.

    Returns for each copy its part of the dataset, and the image it is a copy of.
    """
    copies, first = dict[str, tuple[str, str]](), dict[str, tuple[str, str]]()
    parts: dict[str, Iterable[Record]] = {
        "test": splits.test,
        "val": splits.val,
        "train": splits.train,
        "unlabelled": (Record(source, -1) for source in splits.unlabeled or ()),
    }
    # content belongs to the first measured part that has it
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
