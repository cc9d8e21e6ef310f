"""Members of tar archives from elsewhere, whose headers may announce anything."""

import tarfile

_LARGEST_NOTE = 2**20  # bytes of a long name or other notes before a member, which are read at once
_NOTES = b"xgXLK"  # the types of such members


class Member(tarfile.TarInfo):
    """A member of an archive from elsewhere; tarfile's argument ``tarinfo``."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "Member":
        """Read a header; tarfile.ReadError if it announces over a megabyte of notes.

        Such notes would fill the memory.
        """
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _NOTES and member.size > _LARGEST_NOTE):
            raise tarfile.ReadError(f"a header says that it has {member.size} bytes")
        return member
