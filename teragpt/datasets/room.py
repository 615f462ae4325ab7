"""The room that what was copied from afar may take on this machine: what was wanted least recently goes first.

Why: the disk of a node is smaller than a dataset may be, and every process of the node copies to it. Two kinds of
things lie in a dataset's folder here: blocks of its shards, each of which may go at any time, and all else, which goes
when no process holds the dataset. It must not know what is in a file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from teragpt.datasets.files import MANIFEST, fail
from teragpt.storage import cache_folder, locked

LIMIT = "TERAGPT_CACHE_BYTES"
SPARE = 0.15  # of the disk, which stays free where LIMIT says nothing: a kubelet evicts pods when less is
BLOCKS = "blocks"
MORE = 20  # once blocks must go, this part of all goes at once: looking for the oldest reads every name
held: dict[Path, int] = {}  # open locks of the copies that this process reads, until it ends


class NoRoom(OSError):
    """Nothing more can be removed, and there is still too little room."""


class Entry(NamedTuple):
    """Something that may go: when it was `wanted` last, whether it is the last of its dataset, its bytes, its path."""

    wanted: float
    last: bool
    size: int
    path: Path


def copies() -> Path:
    """The folder that holds a folder for each dataset. Raises OSError if it cannot be made."""
    folder = cache_folder() / "datasets"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def hold(copy: Path) -> None:
    """Keep a copy's folder from being removed until this process ends, and note that it was wanted. Raises OSError."""
    if copy not in held:
        held[copy] = os.open(copy.with_suffix(".used"), os.O_CREAT | os.O_RDWR, 0o666)
        fcntl.flock(held[copy], fcntl.LOCK_SH)
    os.utime(copy.with_suffix(".used"))


@contextmanager
def claimed(root: Path, draft: Path, size: int) -> Generator[IO[bytes]]:
    """Room for `size` bytes under `root`, held by a file of that size at `draft` while the context lasts.

    Renaming the file makes it what the room was for; whoever dies meanwhile leaves nothing that counts. Raises NoRoom,
    and OSError where the disk refuses, and ConfigError for a limit that is none.
    """
    with locked(root / ".lock"):
        make_room(root, size)
        file = draft.open("wb")
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(size)
    try:
        with file:
            yield file
    finally:
        draft.unlink(missing_ok=True)


def make_room(root: Path, size: int) -> None:
    """Count `size` bytes more, after removing what was wanted least recently until they fit. Raises NoRoom, OSError."""
    count = root / ".taken"
    try:
        taken = int(count.read_text())
    except (OSError, ValueError):
        taken = sum(entry.size for entry in entries(root))
    if taken + size > most(root, taken):
        taken = sweep(root, size)
    count.write_text(str(taken + size))


def most(root: Path, taken: int) -> int:
    """The bytes that may be there in all, of which some are taken. Raises ConfigError, OSError."""
    given, disk = limit(), shutil.disk_usage(root)
    there = taken + disk.free
    return min(given, there) if given else there - int(SPARE * disk.total)


def limit() -> int:
    """The bytes that copies may take in all; 0: what the disk holds. Raises ConfigError."""
    given = os.environ.get(LIMIT, "") or "0"
    if not given.isdecimal():
        raise fail(LIMIT, given, "a number of bytes")
    return int(given)


def sweep(root: Path, size: int) -> int:
    """Remove what must go for `size` bytes to fit; returns the bytes that are left. Raises NoRoom, OSError."""
    found = sorted(entries(root))
    taken = sum(entry.size for entry in found)
    allowed = most(root, taken)
    for entry in found:
        enough = allowed - size - (0 if entry.last else allowed // MORE)
        if taken > enough and (remove_copy(entry.path) if entry.last else remove_block(entry.path)):
            taken -= entry.size
    if taken + size > allowed:
        raise NoRoom(errno.ENOSPC, f"no room for {size:,} bytes within {max(0, allowed):,}", str(root))
    return taken


def entries(root: Path) -> Iterator[Entry]:
    """What lies under `root`; what dead processes began is removed. A dataset's last entry is its newest."""
    yield from drafts(root)
    for copy in (path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        newest = last_wanted(copy)
        for shard in (copy / BLOCKS).glob("*/"):
            yield from drafts(shard)
            with os.scandir(shard) as files:
                for file in files:
                    if not file.name.startswith("."):
                        with suppress(FileNotFoundError):
                            status = file.stat()
                            newest = max(newest, status.st_mtime)
                            yield Entry(status.st_mtime, False, status.st_size, Path(file.path))  # noqa: FBT003
        others = (path for path in copy.iterdir() if path.name != BLOCKS)
        yield Entry(newest, True, sum(held_by(path) for path in others), copy)  # noqa: FBT003 - it is a field


def drafts(folder: Path) -> Iterator[Entry]:
    """Files that are being written in a folder, which are wanted; those of dead processes go."""
    for path in folder.glob(".*.part"):
        with suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            except BlockingIOError:
                yield Entry(float("inf"), False, os.fstat(file.fileno()).st_size, path)  # noqa: FBT003


def remove_block(path: Path) -> bool:
    """Remove a block, unless it is being written; whether it went."""
    if path.name.startswith("."):
        return False
    path.unlink(missing_ok=True)
    return True


def remove_copy(copy: Path) -> bool:
    """Remove a dataset's folder, unless a process holds it; whether it went."""
    try:
        with locked(copy.with_suffix(".used"), wait=False):
            (copy / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(copy)
    except BlockingIOError:
        return False
    return True


def last_wanted(copy: Path) -> float:
    """When a copy was opened last; 0 where nothing tells."""
    try:
        return copy.with_suffix(".used").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def held_by(place: Path) -> int:
    """The bytes of a file, or of all files in a folder and below."""
    return sum(path.stat().st_size for path in (place, *place.rglob("*")) if path.is_file())
