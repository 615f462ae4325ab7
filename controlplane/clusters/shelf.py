"""Where a cluster keeps what must outlive its objects, by name: logs and notes; a folder, or what processes share.

Names look like paths. What is appended to is only ever appended to, so that readers' offsets stay true.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Protocol

from controlplane.clusters.pieces import Limits, LogFile
from controlplane.domain.logs import LogExtent

WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class Shelf(Protocol):
    """Files by name. Every method is thread-safe; each name has one writer at a time."""

    def size(self, name: str) -> int:
        """Its length in bytes; 0 where there is none."""
        ...

    def read(self, name: str, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """Up to `limit` bytes from `offset`; empty past the end, and where there is none."""
        ...

    def append(self, name: str, data: bytes) -> None:
        """Write behind what is there. Raises OSError and StoreError."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write in place of what is there, whole or not at all. Raises OSError and StoreError."""
        ...

    def extent(self, name: str) -> LogExtent:
        """From which byte to which it is there, where it is appended to."""
        ...

    def tend(self, name: str, *, over: bool = False) -> int:
        """Keep what is appended to small; the first byte that is kept. `over`: nothing follows, and nothing goes.

        For its writer, who holds the shelf's limits by calling this as it grows. Raises OSError and StoreError.
        """
        ...

    def names(self, folder: str) -> list[str]:
        """Every name within a folder."""
        ...

    def remove(self, folder: str) -> None:
        """Everything within a folder."""
        ...


class Within:
    """A folder of another shelf as a shelf of its own."""

    def __init__(self, shelf: Shelf, folder: str) -> None:
        self._shelf, self._folder = shelf, folder

    def size(self, name: str) -> int:
        """See `Shelf.size`."""
        return self._shelf.size(f"{self._folder}/{name}")

    def read(self, name: str, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """See `Shelf.read`."""
        return self._shelf.read(f"{self._folder}/{name}", offset, limit)

    def append(self, name: str, data: bytes) -> None:
        """See `Shelf.append`."""
        self._shelf.append(f"{self._folder}/{name}", data)

    def put(self, name: str, data: bytes) -> None:
        """See `Shelf.put`."""
        self._shelf.put(f"{self._folder}/{name}", data)

    def extent(self, name: str) -> LogExtent:
        """See `Shelf.extent`."""
        return self._shelf.extent(f"{self._folder}/{name}")

    def tend(self, name: str, *, over: bool = False) -> int:
        """See `Shelf.tend`."""
        return self._shelf.tend(f"{self._folder}/{name}", over=over)

    def names(self, folder: str) -> list[str]:
        """See `Shelf.names`."""
        return [name.removeprefix(f"{self._folder}/") for name in self._shelf.names(f"{self._folder}/{folder}")]

    def remove(self, folder: str) -> None:
        """See `Shelf.remove`."""
        self._shelf.remove(f"{self._folder}/{folder}")


class Folder:
    """A shelf of files below `root`; `limits` are those of what is appended to."""

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        self._root, self._limits = root, limits or Limits()

    def size(self, name: str) -> int:
        """See `Shelf.size`."""
        try:
            return (self._root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def read(self, name: str, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """See `Shelf.read`."""
        return LogFile(self._root / name).read(offset, limit)

    def append(self, name: str, data: bytes) -> None:
        """See `Shelf.append`."""
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)

    def put(self, name: str, data: bytes) -> None:
        """See `Shelf.put`."""
        folder, _, file = f"{self._root}/{name}".rpartition("/")
        draft = f"{folder}/.{file}"
        try:
            descriptor = os.open(draft, WRITE, 0o666)
        except FileNotFoundError:
            Path(folder).mkdir(parents=True, exist_ok=True)
            descriptor = os.open(draft, WRITE, 0o666)
        with open(descriptor, "wb") as out:  # noqa: PTH123 - a descriptor
            out.write(data)
        os.replace(draft, f"{folder}/{file}")  # noqa: PTH105 - thousands in a row

    def extent(self, name: str) -> LogExtent:
        """See `Shelf.extent`."""
        return LogFile(self._root / name).extent()

    def tend(self, name: str, *, over: bool = False) -> int:
        """See `Shelf.tend`."""
        log = LogFile(self._root / name)
        log.pack(self._limits.piece, whole=over)
        return log.shorten(self._limits.most) if self._limits.most and not over else log.extent().first

    def names(self, folder: str) -> list[str]:
        """See `Shelf.names`."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return [f"{folder}/{entry.name}" for entry in (self._root / folder).iterdir() if entry.name[0] != "."]
        return []

    def remove(self, folder: str) -> None:
        """See `Shelf.remove`."""
        shutil.rmtree(self._root / folder, ignore_errors=True)
