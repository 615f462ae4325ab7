"""The allocator of a process with many threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COUNTED = """
import ctypes, os, sys, tempfile, threading
from controlplane import heap

if "small" in sys.argv:
    heap.keep_small()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
meet = threading.Barrier(16)

def take():
    meet.wait()
    assert libc.malloc(10_000)
    meet.wait()

threads = [threading.Thread(target=take) for _ in range(16)]
for one in threads:
    one.start()
for one in threads:
    one.join()
with tempfile.NamedTemporaryFile() as told:
    libc.fopen.restype = ctypes.c_void_p
    file = libc.fopen(os.fsencode(told.name), b"w")
    assert libc.malloc_info(0, ctypes.c_void_p(file)) == 0
    libc.fclose(ctypes.c_void_p(file))
    print(told.read().count(b"<heap nr="))
"""


def heaps(*arguments: str) -> int:
    """How many heaps a process with 16 threads has."""
    told = subprocess.run([sys.executable, "-c", COUNTED, *arguments], check=True, capture_output=True, text=True)
    return int(told.stdout)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library")
def test_threads_share_one_heap() -> None:
    """Where each few would have one of their own."""
    assert heaps("small") == 1 < heaps()


LOADED = """
import gc, sys, time
from controlplane import heap

kept = [[] for _ in range(500_000)]
if "kept" in sys.argv:
    heap.keep_loaded()
began = time.process_time()
for _ in range(5):
    gc.collect()
print(time.process_time() - began)
"""


def test_what_is_loaded_costs_no_collection_anything() -> None:
    took = [
        float(subprocess.run([sys.executable, "-c", LOADED, word], check=True, capture_output=True, text=True).stdout)
        for word in ("kept", "left")
    ]
    assert took[0] < took[1] / 2


HOLES = """
import ctypes
from controlplane import heap

heap.keep_small()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size, several = 10_000, 4_000

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

taken = [libc.malloc(size) for _ in range(several)]
for one in taken:
    ctypes.memset(one, 1, size)
for place, one in enumerate(taken):
    if place % 16:
        libc.free(one)
before = resident()
heap.give_back()
print((before - resident()) / (size * several))
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library")
def test_holes_between_what_is_in_use_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert 0.6 < float(done.stdout) < 1.0
