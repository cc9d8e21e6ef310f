"""Handling of freed memory by the C library's malloc."""

import ctypes
import platform

# from <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next allocation, if malloc is glibc's.

    By default, glibc returns the activations of a training step on a CPU to the system at its end.
    The system then clears the same pages for the next step: a twelfth of the time of a ViT-B/16.
    """
    if platform.libc_ver()[0] == "glibc":
        malloc = ctypes.CDLL(None)
        if not malloc.mallopt(_M_MMAP_THRESHOLD, _MOST):
            # older releases accept at most 32 MiB
            malloc.mallopt(_M_MMAP_THRESHOLD, 2**25)
        malloc.mallopt(_M_TRIM_THRESHOLD, _MOST)
