"""Files in the store, for processes that share it and no disk: a `controlplane.clusters.shelf.Shelf` on a ledger.

A file lies in parts. Short pieces that come one after the other are joined to one part, until that is large enough: a
log grows by lines. What is beyond `LARGEST` bytes of one file is not kept, and the file says so.
"""

from __future__ import annotations

import time

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from controlplane.store.store import Ledger
from controlplane.store.tables import File, Part
from controlplane.store.writer import Transaction

JOINED, PART = 8 << 10, 64 << 10  # bytes up to which pieces are joined, and of a part at most
LARGEST = 256 << 20
CUT = b"\n[what follows is not kept: the log is larger than the store keeps of one]\n"


class StoreShelf:
    """Writes as `ledger` lets it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def size(self, name: str) -> int:
        """See `Shelf.size`."""
        with self._ledger.read() as session:
            return session.scalar(select(File.size).where(File.name == name)) or 0

    def read(self, name: str, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """See `Shelf.read`."""
        with self._ledger.read() as session:
            first = session.scalar(select(func.max(Part.start)).where(Part.name == name, Part.start <= offset))
            if first is None:
                return b""
            wanted = select(Part.data).where(Part.name == name, Part.start >= first, Part.start < offset + limit)
            data = b"".join(session.scalars(wanted.order_by(Part.start)))
        return data[offset - first : offset - first + limit]

    def append(self, name: str, data: bytes) -> None:
        """See `Shelf.append`."""
        self._ledger.write(lambda transaction: _append(transaction.session, name, data))

    def put(self, name: str, data: bytes) -> None:
        """See `Shelf.put`."""

        def job(transaction: Transaction) -> None:
            file = _file(transaction.session, name)
            transaction.session.execute(delete(Part).where(Part.name == name))
            _add(transaction.session, file, 0, data)

        self._ledger.write(job)

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
    if file.size >= LARGEST or not data:
        return
    if file.size + len(data) > LARGEST:
        data = data[: LARGEST - file.size] + CUT
    last = session.scalars(select(Part).where(Part.name == name).order_by(Part.start.desc()).limit(1)).one_or_none()
    if last is not None and len(last.data) + len(data) <= JOINED:
        last.data, file.size, file.changed_at = last.data + data, file.size + len(data), time.time()
        session.flush()
    else:
        _add(session, file, file.size, data)


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
