"""Result of decoding all images of a dataset, as a run's folder keeps it."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from kdpl.data.names import Names
from kdpl.data.parallel import in_parallel
from kdpl.data.shards import archives
from kdpl.data.sources import try_decoding
from kdpl.errors import DataError
from kdpl.runtime.files import atomic_path
from kdpl.runtime.origin import Origin

_SHOWN = 10


class Checked(BaseModel):
    """The result of decoding all ``images`` of a dataset, and what it was made from.

    ``skipped`` are those that cannot be used, each with the reason as half a sentence that names
    it. ``digests`` are those of the contents of images that have the same one as another, of which
    one is a test or validation image, or may become one.
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
        measured: int = 0,
        made_from: Origin | None = None,
    ) -> "Checked":
        """Decode every image, in parallel under a progress bar.

        Args:
            sources: The images.
            decode: Opens one; or also returns the digest of its content, which it has to for
                ``measured`` above 0.
            measured: Number of images, the first ones, of which copies are looked for.
            made_from: What the result depends on.
        """
        skipped, digests = dict[str, str](), dict[str, str]()
        contents = set[str]()
        arranged = archives.arrange(Names.of(sources)).sources
        results = in_parallel(
            partial(try_decoding, decode=decode), arranged, "looking at all images"
        )
        for number, (source, (fault, digest)) in enumerate(zip(sources, results, strict=True)):
            if fault is not None:
                # without what to do about it
                skipped[source] = fault.rpartition(": ")[0]
            elif number < measured:
                contents.add(digest)
            if digest in contents:
                digests[source] = digest
        counts = Counter(digests.values())
        return cls(
            made_from=dict(made_from or {}),
            images=len(sources),
            skipped=skipped,
            digests={source: digest for source, digest in digests.items() if counts[digest] > 1},
        )

    @classmethod
    def load(cls, file: Path) -> "Checked | None":
        """Read a file; None where there is nothing that can be read."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            return None

    def save(self, file: Path) -> None:
        """Write it, atomically."""
        with atomic_path(file) as temporary:
            text = json.dumps(self.model_dump(), indent=2, ensure_ascii=False)
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")

    def require_none(self) -> None:
        """Refuse images that cannot be used, by a DataError that names the first ones."""
        if not self.skipped:
            return
        named = [*self.skipped.values()]
        more = [f"and {len(named) - _SHOWN} more"] if len(named) > _SHOWN else []
        problem = (
            f"{len(named)} of {self.images} images cannot be used "
            f"({'; '.join(named[:_SHOWN] + more)})"
        )
        raise DataError(
            f"{problem}: convert, replace or remove them, or set data.init_args.bad_images to skip"
        )
