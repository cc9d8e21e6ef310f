"""Result of decoding all images of a dataset, stored in a run's folder, and copies of images."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kdpl.data.inspection import Inspected
from kdpl.data.names import Names
from kdpl.runtime.files import write_text
from kdpl.runtime.origin import Origin


class Checked(BaseModel):
    """Result of decoding all ``images`` of a dataset, and what it was made from.

    ``skipped`` maps images that cannot be used to the reason, half a sentence that names the image.
    ``digests`` has the content digests of copies: images with the same content as another, at least
    one of them a test or validation image, or a training image that may become one; near-copies
    have the digest of the image that ``near_copies`` names for them. ``contents`` are digests of
    all test and validation images, and of all other images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[7] = 7
    made_from: dict[str, Any]
    images: int
    skipped: dict[str, str]
    digests: dict[str, str]
    near_copies: dict[str, str]
    contents: tuple[str, str]

    @classmethod
    def of(
        cls,
        sources: Names,
        inspected: Iterable[Inspected],
        apart: int,
        measured: int,
        made_from: Origin,
    ) -> "Checked":
        """Sum up what inspecting the images has shown.

        Args:
            sources: The images; test and validation images come first.
            inspected: The result for each.
            apart: Number of test and validation images.
            measured: Number of leading images whose copies are searched for.
            made_from: What the result depends on.
        """
        # imports torch, which the checks before it do without
        from kdpl.data.near_copies import near_copies

        # measured images come first, so that later copies of them are noticed
        skipped, digests, near = dict[str, str](), dict[str, str](), dict[str, str]()
        keys = dict[str, str]()  # by the digest of a measured image
        totals = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
        compared = near_copies(inspected, lambda image: image.picture, measured)
        for number, (source, (image, first)) in enumerate(zip(sources, compared, strict=True)):
            totals[number >= apart].update(f"{image.digest}\n".encode())
            if image.problem is not None:
                # without the remedy
                skipped[source] = image.problem.rpartition(": ")[0]
                continue
            key = keys.get(image.digest)
            if key is None and first is not None:
                near[source] = sources[first]
                key = digests[near[source]]
            if number < measured:
                key = keys.setdefault(image.digest, key or image.digest)
            if key is not None:
                digests[source] = key
        # keep the digests of copies only
        counts = Counter(digests.values())
        return cls(
            made_from=dict(made_from),
            images=len(sources),
            skipped=skipped,
            digests={source: content for source, content in digests.items() if counts[content] > 1},
            near_copies=near,
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
