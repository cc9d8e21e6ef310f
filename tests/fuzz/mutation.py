"""Files that were whole, garbled: at any byte, or within the JSON that they hold, so that more than syntax is met."""

import json
import random
from collections.abc import Callable
from typing import Any

_PIECES = (
    *(b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'"x"', b"true", b"9" * 30, b"[" * 2000, b"\xff\xfe", b"\0"),
    *(b'""', b"\\ud800", b"../", b"\n", b",", b'"', b"\xe2\x80\xae", b"\x1b[2J"),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "x", "\n", "\ud800"),
    *([], {}, [0], [[]], ["x"], {"x": 0}, "F64", "../x", [-1, 2], [2**62, 2**62], "null", "[]", "{}", "x" * 5000),
)
_LENGTH = 8  # bytes before the header of a safetensors file that say how long it is


def mutated(content: bytes, name: str, draw: random.Random) -> bytes:
    """Garble a file.

    Args:
        content: The whole file.
        name: Its name, whose ending says what it holds.
        draw: What is garbled, and how.
    """
    within = {".json": _json, ".safetensors": _safetensors}.get(name[name.rfind(".") :], _bytes)
    return draw.choice((within, _bytes))(content, draw)


def _bytes(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.05:
        return content[: draw.randrange(len(content) + 1)]
    garbled = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        if not garbled:
            break
        # headers are at the beginning, but for zip
        size = len(garbled)
        at = draw.randrange(min(size, draw.choice((16, 600, 3000, size))))
        at = size - 1 - at if draw.random() < 0.2 else at
        draw.choice(_WAYS)(garbled, at, draw)
    return bytes(garbled)


def _flip(garbled: bytearray, at: int, draw: random.Random) -> None:
    garbled[at] ^= 1 << draw.randrange(8)


def _replace(garbled: bytearray, at: int, draw: random.Random) -> None:
    garbled[at] = draw.randrange(256)


def _remove(garbled: bytearray, at: int, draw: random.Random) -> None:
    del garbled[at : at + draw.choice((1, 4, 60))]


def _insert(garbled: bytearray, at: int, draw: random.Random) -> None:
    garbled[at:at] = draw.choice(_PIECES)


def _overwrite(garbled: bytearray, at: int, draw: random.Random) -> None:
    piece = draw.choice(_PIECES)
    garbled[at : at + len(piece)] = piece


def _copy(garbled: bytearray, at: int, draw: random.Random) -> None:
    other, length = draw.randrange(len(garbled)), draw.choice((8, 64, 512))
    garbled[at : at + length] = garbled[other : other + length]


_WAYS: tuple[Callable[[bytearray, int, random.Random], None], ...] = (
    *(_flip, _replace, _remove, _insert, _overwrite, _copy),
)


def _json(content: bytes, draw: random.Random) -> bytes:
    value = json.loads(content)
    for _ in range(draw.choice((1, 1, 2))):
        value = _changed(value, draw)
    return _encoded(value)


def _safetensors(content: bytes, draw: random.Random) -> bytes:
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    header = _json(content[_LENGTH:end], draw)
    return len(header).to_bytes(_LENGTH, "little") + header + content[end:]


def _changed(value: Any, draw: random.Random) -> Any:
    """A JSON value with one place in it changed; JSON that stands in a text is gone into."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        return _encoded(_changed(json.loads(value), draw)).decode()
    if not isinstance(value, dict | list) or not value or draw.random() < 0.05:
        return draw.choice(_VALUES)
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    way = draw.random()
    copy = value.copy()
    if way < 0.1:
        del copy[key]
    elif way < 0.2:
        other = draw.choice(list(value.values()) if isinstance(value, dict) else value)
        copy[key] = other
    elif way < 0.3 and isinstance(copy, dict):
        copy[draw.choice(("x", "", "\n", key + "x"))] = copy.pop(key)
    else:
        copy[key] = _changed(copy[key], draw)
    return copy


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode()
