"""How this process's memory is kept: by the C library in one heap for all threads, which shrinks (Linux with glibc).

Left alone, it keeps a heap for each few threads, each with the holes that the requests of a while ago left: a busy
server's memory grows by that for hours. Python's threads take turns, so that one heap makes nobody wait.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

M_TRIM_THRESHOLD, M_ARENA_MAX = -1, -8  # of mallopt(3)
TRIM_BYTES = 256 << 10  # free at the heap's end: more is given back, and allocations of 128 KiB have pages of their own


def keep_small() -> None:
    """Have one heap from now on; call it before there are threads. Elsewhere than on glibc nothing happens."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(M_ARENA_MAX, 1)
    mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


def keep_loaded() -> None:
    """Have Python's collector leave alone what is loaded by now: 160,000 objects, 50 ms of each full collection."""
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Give the system what is free between what is in use: holes that a list of thousands of pods has left. Some ms."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
