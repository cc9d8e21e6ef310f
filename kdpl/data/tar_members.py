"""Members of tar archives from elsewhere, whose headers may say anything."""

import tarfile

LARGEST_IMAGE = 2**29
"""Bytes of an image file in a shard, at most: half a gigabyte, which is more than Pillow takes undecoded."""

_LARGEST_NOTE = 2**20  # bytes of a name or of other notes that stand before a member; they are read at once
_NOTES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Member(tarfile.TarInfo):
    """A member whose header is refused where reading it would fill the memory; for tarfile's argument ``tarinfo``."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Member":
        """Read a header of 512 bytes.

        Raises:
            tarfile.ReadError: It announces a name, or other notes, of more than a megabyte, or a negative size.
        """
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _NOTES and member.size > _LARGEST_NOTE):
            raise tarfile.ReadError(f"a header says that it has {member.size} bytes")
        return member

    @property
    def is_plain(self) -> bool:
        """Whether it is a file that lies in the archive as it is; a sparse one may claim any size."""
        return self.isreg() and not self.issparse()
