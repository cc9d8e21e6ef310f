"""Result of decoding all images of a dataset, stored in a run's folder, and copies of images."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from kdpl.data.decoding import Decoding, open_image
from kdpl.data.parallel import in_parallel
from kdpl.data.sources import content_of, try_decoding
from kdpl.data.splits import Splits
from kdpl.runtime.files import write_text
from kdpl.runtime.origin import Origin, digest


class Checked(BaseModel):
    """Result of decoding all ``images`` of a dataset, and what it was made from.

    ``skipped`` maps images that cannot be used to the reason, half a sentence that names the image.
    ``digests`` has the content digests of copies: images with the same content as another, at least
    one of them a test or validation image, or a training image that may become one. ``contents``
    are digests of all test and validation images, and of all other images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[5] = 5
    made_from: dict[str, Any]
    images: int
    skipped: dict[str, str]
    digests: dict[str, str]
    contents: tuple[str, str]

    @classmethod
    def decode_all(
        cls,
        splits: Splits,
        decode: Callable[[str], Image | str],
        measured: int,
        made_from: Origin,
    ) -> "Checked":
        """Decode every image, in parallel under a progress bar.

        Args:
            splits: The images.
            decode: Opens an image, or checks it and returns the digest of its content; the latter
                is required for ``measured`` above 0.
            measured: Number of leading images whose copies are searched for.
            made_from: What the result depends on.
        """
        # decode in order: measured images come first, so that later copies of them are noticed
        skipped, digests = dict[str, str](), dict[str, str]()
        contents, sources = set[str](), splits.sources
        apart = len(splits.test) + len(splits.val)
        totals = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        results = in_parallel(
            partial(try_decoding, decode=decode), sources, "looking at all images"
        )
        for number, (source, (problem, content)) in enumerate(zip(sources, results, strict=True)):
            totals[number >= apart].update(f"{content}\n".encode())
            if problem is not None:
                # without the remedy
                skipped[source] = problem.rpartition(": ")[0]
            elif number < measured:
                contents.add(content)
            if content in contents:
                digests[source] = content
        # keep the digests of copies only
        counts = Counter(digests.values())
        return cls(
            made_from=dict(made_from),
            images=len(sources),
            skipped=skipped,
            digests={source: content for source, content in digests.items() if counts[content] > 1},
            contents=(totals[0].hexdigest(), totals[1].hexdigest()),
        )

    @classmethod
    def load(cls, file: Path) -> "Checked | None":
        """Read a file; None if it is missing or invalid."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            return None

    def save(self, file: Path) -> None:
        """Write the result to a file, atomically."""
        write_text(file, json.dumps(self.model_dump(), indent=2, ensure_ascii=False))


def decode_and_digest(source: str, decoding: Decoding) -> str:
    """Open an image as ``open_source`` does, and return the digest of the bytes read for it."""
    content = content_of(source)
    open_image(source, content, decoding)
    return digest([content])
