"""Result of decoding all images of a dataset, stored in a run's folder, and copies of images."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from kdpl.data.decoding import Decoding, open_image
from kdpl.data.names import Names
from kdpl.data.parallel import in_parallel
from kdpl.data.sources import content_of, digest_of_content, try_decoding
from kdpl.runtime.files import write_text
from kdpl.runtime.origin import Origin


class Checked(BaseModel):
    """Result of decoding all ``images`` of a dataset, and what it was made from.

    ``skipped`` maps images that cannot be used to the reason, half a sentence that names the image.
    ``digests`` has the content digests of copies: images with the same content as another, at least
    one of them a test or validation image, or a training image that may become one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[4] = 4
    made_from: dict[str, Any]
    images: int
    skipped: dict[str, str]
    digests: dict[str, str]

    @classmethod
    def decode_all(
        cls,
        sources: Sequence[str],
        decode: Callable[[str], Image | str],
        measured: int,
        made_from: Origin,
    ) -> "Checked":
        """Decode every image, in parallel under a progress bar.

        Args:
            sources: The images.
            decode: Opens an image, or checks it and returns the digest of its content; the latter
                is required for ``measured`` above 0.
            measured: Number of leading images whose copies are searched for.
            made_from: What the result depends on.
        """
        # decode in order: measured images come first, so that later copies of them are noticed
        skipped, digests = dict[str, str](), dict[str, str]()
        contents = set[str]()
        results = in_parallel(
            partial(try_decoding, decode=decode), Names.of(sources), "looking at all images"
        )
        for number, (source, (problem, digest)) in enumerate(zip(sources, results, strict=True)):
            if problem is not None:
                # without the remedy
                skipped[source] = problem.rpartition(": ")[0]
            elif number < measured:
                contents.add(digest)
            if digest in contents:
                digests[source] = digest
        # keep the digests of copies only
        counts = Counter(digests.values())
        return cls(
            made_from=dict(made_from),
            images=len(sources),
            skipped=skipped,
            digests={source: digest for source, digest in digests.items() if counts[digest] > 1},
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
    return digest_of_content(content)
