"""Files in the store, for processes that share it and no disk: a `controlplane.clusters.shelf.Shelf` on a ledger.

A file lies in parts, which Postgres compresses. Short pieces that come one after the other are joined to one part,
until that is large enough: a log grows by lines. Of a file that is longer than `most` the oldest parts are given up;
the file `<name>.kept` says from which byte on it is kept, and how many lines stood before.
"""

from __future__ import annotations

import json
import time

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from controlplane.domain.logs import LogExtent
from controlplane.store.store import Ledger
from controlplane.store.tables import File, Part

JOINED, PART = 8 << 10, 64 << 10  # bytes up to which pieces are joined, and of a part at most


class StoreShelf:
    """Writes as `ledger` lets it, and keeps `most` bytes of what is appended to (0: all)."""

    def __init__(self, ledger: Ledger, most: int = 0) -> None:
        self._ledger, self._most = ledger, most

    def size(self, name: str) -> int:
        """See `Shelf.size`."""
        with self._ledger.read() as session:
            return session.scalar(select(File.size).where(File.name == name)) or 0

    def read(self, name: str, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """See `Shelf.read`."""
        with self._ledger.read() as session:
            first = session.scalar(select(func.max(Part.start)).where(Part.name == name, Part.start <= offset))
            if first is None:  # there is none, or this part of it was given up
                return b""
            wanted = select(Part.data).where(Part.name == name, Part.start >= first, Part.start < offset + limit)
            data = b"".join(session.scalars(wanted.order_by(Part.start)))
        return data[offset - first : offset - first + limit]

    def append(self, name: str, data: bytes) -> None:
        """See `Shelf.append`."""
        self._ledger.write(lambda transaction: _append(transaction.session, name, data))

    def put(self, name: str, data: bytes) -> None:
        """See `Shelf.put`."""
        self._ledger.write(lambda transaction: _put(transaction.session, name, data))

    def extent(self, name: str) -> LogExtent:
        """See `Shelf.extent`."""
        with self._ledger.read() as session:
            return _extent(session, name)

    def tend(self, name: str, *, over: bool = False) -> int:
        """See `Shelf.tend`."""
        there = self.extent(name)
        if over or not self._most or there.end - there.first <= self._most:
            return there.first
        return self._ledger.write(lambda transaction: _shorten(transaction.session, name, self._most))

    def names(self, folder: str) -> list[str]:
        """See `Shelf.names`."""
        with self._ledger.read() as session:
            return [*session.scalars(select(File.name).where(File.name.startswith(f"{folder}/", autoescape=True)))]

    def remove(self, folder: str) -> None:
        """See `Shelf.remove`."""
        gone = delete(File).where(File.name.startswith(f"{folder}/", autoescape=True))
        self._ledger.write(lambda transaction: transaction.session.execute(gone))


def _append(session: Session, name: str, data: bytes) -> None:
    file = _file(session, name)
    if not data:
        return
    last = session.scalars(select(Part).where(Part.name == name).order_by(Part.start.desc()).limit(1)).one_or_none()
    if last is not None and len(last.data) + len(data) <= JOINED:
        last.data, file.size, file.changed_at = last.data + data, file.size + len(data), time.time()
        session.flush()
    else:
        _add(session, file, file.size, data)


def _put(session: Session, name: str, data: bytes) -> None:
    file = _file(session, name)
    session.execute(delete(Part).where(Part.name == name))
    _add(session, file, 0, data)


def _extent(session: Session, name: str) -> LogExtent:
    end = session.scalar(select(File.size).where(File.name == name)) or 0
    kept = session.scalar(select(Part.data).where(Part.name == f"{name}.kept", Part.start == 0))
    return LogExtent(**{"end": end, **(json.loads(kept) if kept else {})})


def _shorten(session: Session, name: str, most: int) -> int:
    """Give up the oldest parts, up to a line's end; the first byte that is kept."""
    _file(session, name)  # its row is locked: nobody appends meanwhile
    there = _extent(session, name)
    gone = (Part.name == name, Part.start < there.end - most)
    last = session.scalars(select(Part).where(*gone).order_by(Part.start.desc()).limit(1)).one_or_none()
    if last is None:
        return there.first
    rest = last.data[last.data.rfind(b"\n") + 1 :] if b"\n" in last.data else b""
    lines = sum(data.count(b"\n") for data in session.scalars(select(Part.data).where(*gone)))
    first = last.start + len(last.data) - len(rest)
    session.execute(delete(Part).where(*gone))
    if rest:
        session.add(Part(name=name, start=first, data=rest))
    kept = {"first": first, "lines": there.lines + lines}
    _put(session, f"{name}.kept", json.dumps(kept).encode())
    session.flush()
    return first


def _add(session: Session, file: File, start: int, data: bytes) -> None:
    """Parts from `start` on, the end of the file."""
    places = range(0, len(data), PART)
    session.add_all(Part(name=file.name, start=start + at, data=data[at : at + PART]) for at in places)
    file.size, file.changed_at = start + len(data), time.time()
    session.flush()


def _file(session: Session, name: str) -> File:
    """The file's row, made where it is absent."""
    file = session.get(File, name, with_for_update={"key_share": True})
    if file is None:
        file = File(name=name, size=0, changed_at=time.time())
        session.add(file)
        session.flush()
    return file
