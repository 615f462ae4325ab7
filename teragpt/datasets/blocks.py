"""Shards read from a store block by block, each when it is first wanted, and kept on this machine while there is room.

Why: training starts at once, whatever a dataset's size, and a node's disk needs not hold it. A block counts only when
its content has the digest that the dataset says; every process compares it once before it believes what lies here. It
must not know in which order tokens are read.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from teragpt.datasets.crew import Crew
from teragpt.datasets.files import DIGEST_BYTES, File, fail
from teragpt.datasets.room import BLOCKS, claimed
from teragpt.datasets.shards import Ids, block_digest
from teragpt.storage import Bucket, locked

AT_ONCE = 16  # requests of a process; one answer takes as long as the way to the store
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds before each further try
TRIES_OF_DAMAGED = 3
STRIPES = 256  # locks that the processes of a node share
crew = Crew(AT_ONCE, "blocks")
T = TypeVar("T")


class RemoteShard:
    """A shard in the store `source`, whose blocks are kept in `copy`. `digests`: of its blocks, one after the other."""

    def __init__(
        self, source: Bucket, file: File, digests: bytes, block: int, copy: Path, dtype: np.dtype[Any]
    ) -> None:
        self.source, self.file, self.digests, self.block, self.dtype = source, file, digests, block, dtype
        self.root, self.folder = copy.parent, copy / BLOCKS / file.name
        self.seen = bytearray(len(digests) // DIGEST_BYTES)  # whether this process has compared a block

    def __len__(self) -> int:
        return self.file.size // self.dtype.itemsize

    def ask(self, start: int, stop: int) -> Callable[[], Ids]:
        """See Shard. What is returned raises ConnectionError if the store fails for long, ConfigError for bad data."""
        return crew.do(lambda: self.take(start, stop)).result

    def take(self, start: int, stop: int) -> Ids:
        """Tokens `start` to `stop`."""
        first, last = start * self.dtype.itemsize, stop * self.dtype.itemsize
        numbers = range(first // self.block, (last - 1) // self.block + 1)
        parts = (self.part(one, max(0, first - one * self.block), last - one * self.block) for one in numbers)
        return np.frombuffer(b"".join(parts), self.dtype)

    def part(self, number: int, start: int, stop: int) -> bytes:
        """Bytes of a block, up to its end at most."""
        if self.seen[number]:
            path = self.path(number)
            try:
                with path.open("rb") as file:
                    os.utime(file.fileno())  # it was wanted now
                    file.seek(start)
                    return file.read(stop - start)
            except OSError:
                pass  # it had to go
        return self.whole(number)[start:stop]

    def whole(self, number: int) -> bytes:
        """A block, from this machine or the store; one of all processes of the node that want it reads it there."""
        with shared_lock(self.root, f"{self.folder}/{number}"):
            try:
                content = self.path(number).read_bytes()
            except OSError:
                content = b""
            if not self.right(number, content):
                content = patiently(f"{self.source}/{self.file.name}", lambda: self.fetch(number), WAITS)
                self.keep(number, content)
        self.seen[number] = True
        return content

    def fetch(self, number: int) -> bytes:
        """A block from the store. Raises OSError, and Damaged for one that is not what was prepared."""
        start = number * self.block
        content = self.source.read_part(self.file.name, start, min(start + self.block, self.file.size))
        if not self.right(number, content):
            raise Damaged(None, f"bytes from {start:,} on are not what was prepared")
        return content

    def right(self, number: int, content: bytes) -> bool:
        """Whether this is the block of that number."""
        return block_digest(content) == self.digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]

    def keep(self, number: int, content: bytes) -> None:
        """Keep a block for those who want it later, if there is room: it appears by a rename."""
        path = self.path(number)
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with claimed(self.root, draft, len(content)) as file:
                file.write(content)
                file.flush()
                draft.replace(path)
        except OSError as error:
            once(str(self.root), f"data: {self.root} keeps no more of {self.source} ({reason(error)}): it is read anew")

    def path(self, number: int) -> Path:
        """Where a block is kept."""
        return self.folder / f"{number:06d}"


class Damaged(OSError):
    """What came is not what the dataset says."""


def shared_lock(root: Path, name: str) -> AbstractContextManager[None]:
    """A lock of what has that name, for all processes of the node."""
    folder = root / ".locks"
    folder.mkdir(exist_ok=True)
    return locked(folder / f"{zlib.crc32(name.encode()) % STRIPES:03d}")


def patiently(what: str, get: Callable[[], T], waits: Sequence[float]) -> T:
    """What `get` returns, tried again after `waits` (s) while the store fails.

    Raises ConfigError for what is not there, not allowed or damaged, ConnectionError when the last try has failed.
    """
    for tries in count(1):
        try:
            return get()
        except (FileNotFoundError, PermissionError) as error:
            raise fail("data", what, f"an object that can be read ({reason(error)})") from None
        except Damaged as error:
            if tries >= TRIES_OF_DAMAGED:
                allowed = f"the content that dataset.json tells ({reason(error)}): upload or prepare the dataset again"
                raise fail("data", what, allowed) from None
        except OSError as error:
            said = reason(error)
            if tries > len(waits):
                raise ConnectionError(f"data: {what} could not be read in {tries} tries ({said})") from None
            once(what, f"data: {what} could not be read ({said}): trying again for {sum(waits):g} s", every=10.0)
        time.sleep(waits[tries - 1])
    raise AssertionError


def reason(error: OSError) -> str:
    """What went wrong, in words."""
    return error.strerror or str(error)


said_at: dict[str, float] = {}
saying = threading.Lock()


def once(subject: str, line: str, every: float = float("inf")) -> None:
    """Say a line, unless one of the same subject was said in the last so many seconds."""
    with saying:
        now = time.monotonic()
        if now - said_at.get(subject, float("-inf")) >= every:
            said_at[subject] = now
            print(line, file=sys.stderr, flush=True)
