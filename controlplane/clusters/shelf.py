"""Where a cluster keeps what must outlive its objects, by name: logs and notes; a folder, or what processes share.

Names look like paths. What is appended to is only ever appended to, so that readers' offsets stay true.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Protocol


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

    def names(self, folder: str) -> list[str]:
        """See `Shelf.names`."""
        return [name.removeprefix(f"{self._folder}/") for name in self._shelf.names(f"{self._folder}/{folder}")]

    def remove(self, folder: str) -> None:
        """See `Shelf.remove`."""
        self._shelf.remove(f"{self._folder}/{folder}")


class Folder:
    """A shelf of files below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def size(self, name: str) -> int:
        """See `Shelf.size`."""
        try:
            return (self._root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def read(self, name: str, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """See `Shelf.read`."""
        try:
            descriptor = os.open(self._root / name, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        with open(descriptor, "rb", buffering=0):  # noqa: PTH123 - a descriptor
            there = os.fstat(descriptor).st_size - offset
            return os.pread(descriptor, min(limit, max(0, there)), offset)  # it takes memory for as much as is asked

    def append(self, name: str, data: bytes) -> None:
        """See `Shelf.append`."""
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)

    def put(self, name: str, data: bytes) -> None:
        """See `Shelf.put`."""
        path = self._root / name
        draft = path.with_name(f".{path.name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        draft.replace(path)

    def names(self, folder: str) -> list[str]:
        """See `Shelf.names`."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return [f"{folder}/{entry.name}" for entry in (self._root / folder).iterdir() if entry.name[0] != "."]
        return []

    def remove(self, folder: str) -> None:
        """See `Shelf.remove`."""
        shutil.rmtree(self._root / folder, ignore_errors=True)
