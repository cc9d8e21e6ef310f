"""Origin of a file: one mapping of names to short values or digests of what it was made from.

Every file that kdpl writes and reads again carries its origin, or lies next to a file that does.
``require_same`` compares it with what the file would be made from now.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from kdpl.errors import ConfigError, KdplError

Origin = Mapping[str, Any]
"""Mapping of names, such as ``seed``, to JSON values; trees are compared leaf by leaf."""

T = TypeVar("T")

_SHOWN = 200  # characters of a value in a message


def digest(parts: Iterable[str | bytes]) -> str:
    """Digest texts or bytes, including where each ends."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part if isinstance(part, bytes) else os.fsencode(part)
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def as_json(value: T) -> T:
    """Return a value as read back from JSON, objects as their ``repr`` without addresses."""
    text = json.dumps(value, default=lambda thing: re.sub(" at 0x[0-9a-f]+", "", repr(thing)))
    read: T = json.loads(text)
    return read


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a tree of settings by their names on the command line."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: leaf
        for key, branch in tree.items()
        for name, leaf in flatten(branch, f"{prefix}.{key}".lstrip(".")).items()
    }


def difference(before: Origin | None, now: Origin) -> tuple[str, str] | None:
    """Return the name of the first difference, and its description; None if there is none."""
    if before is None:
        return "", "it does not say what"
    was, present = (flatten(as_json(origin)) for origin in (before, now))
    for name in {**present, **was}:
        if was.get(name) != present.get(name):
            # long values are cut in the message
            there, here = (f"{leaves.get(name)!s:.{_SHOWN}}" for leaves in (was, present))
            return name, f"{name} is {there} there and {here} here"
    return None


def require_same(
    what: str,
    before: Origin | None,
    now: Origin,
    remedy: str,
    remedies: Mapping[str, str] | None = None,
    kind: type[KdplError] = ConfigError,
) -> None:
    """Raise an error of a kind, in one sentence, if something was made from another origin.

    ``what`` begins the sentence; ``remedies`` replace ``remedy`` for some names.
    """
    if differs := difference(before, now):
        name, words = differs
        remedy = (remedies or {}).get(name, remedy)
        raise kind(f"{what} was made from something else ({words}): {remedy}")
