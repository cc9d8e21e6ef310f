"""Importing what is large in less time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import what a process needs for all its life, without looking for garbage in it.

    Torch and Lightning make half a million objects, hardly any of them garbage. The collector goes through them again
    and again, and once more as the process ends: two fifths of the time of a command that does little else.

    Only for a process of kdpl's own: what is alive at the end of the block is never looked at again.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
