"""An image within a file that holds many, such as a tar shard."""

from typing import Any, Self

from kdpl.data.storage import read
from kdpl.errors import DataError, reason

LARGEST_IMAGE = 2**29
"""Most bytes of an image in a shard: half a gigabyte, more than Pillow accepts undecoded."""


class ShardImage(str):
    """An image in a ``shard``, as ``SHARD/member``: ``size`` bytes from ``offset`` on."""

    __slots__ = ("offset", "shard", "size")
    shard: str
    offset: int
    size: int

    def __new__(cls, shard: str, name: str, offset: int, size: int) -> Self:
        """Create the name and attach the position."""
        image = super().__new__(cls, f"{shard}/{name}")
        image.shard, image.offset, image.size = shard, offset, size
        return image

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardImage, (self.shard, self[len(self.shard) + 1 :], self.offset, self.size)

    def read(self) -> bytes:
        """Read the image's bytes.

        DataError if it is too large, or the shard is missing, unreachable or truncated.
        """
        require_size(self, self.size)
        try:
            content = self._content()
        except OSError as error:
            raise DataError(
                f"shard {self.shard} cannot be read ({reason(error)}): restore it"
            ) from error
        if len(content) < self.size:
            raise DataError(
                f"shard {self.shard} ends within {self}: restore the shard that the run began with"
            )
        return content

    def _content(self) -> bytes:
        return read(self.shard, self.offset, self.size)


def require_size(name: str, size: int) -> None:
    """Refuse to read more than an image has into memory, by a DataError."""
    if size > LARGEST_IMAGE:
        raise DataError(
            f"image {name} has {size} bytes, expected at most {LARGEST_IMAGE}: leave it out"
        )
