"""A log on disk: a file that its writer appends to, and the older pieces of it, compressed and taken out of it.

<log>                  what its writer appends to: as long as the whole log, with holes where its pieces were
<log>.<from>-<to>.gz   these bytes of it, up to a line's end; `zcat` reads them, and we any block of them
<log>.kept             the first byte that is kept, and how many lines stood before it, once some were given up

A byte keeps its place for ever, and the writer notices nothing. What of a piece is damaged is read as a line that says
so, behind NULs in the other bytes' places. A piece is whole and durable before its bytes leave the file: a kill at any
instant loses none and doubles none. Who reads meanwhile looks twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from controlplane.domain.logs import LogExtent
from controlplane.durable import sync_folder
from controlplane.faults import fault

PIECE = re.compile(r"(\d+)-(\d+)\.gz")  # a name behind its log's
BLOCK = 1 << 20  # bytes of a log that are compressed together
PLAIN = 64 << 10  # bytes at the end of a log that grows which stay as they are: its last lines are read there
GZIP = struct.Struct("<4sIBBHHHI")  # a member's header with one extra field, ours: the member's length
TRAILER = struct.Struct("<II")
HEAD = (b"\x1f\x8b\x08\x04", 0, 0, 255, 8, int.from_bytes(b"TG", "little"), 4)
PUNCH = 1 | 2  # FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE


@dataclass(frozen=True)
class Limits:
    """A log is compressed in pieces of `piece` bytes; beyond `most` bytes its oldest are given up (0: none ever)."""

    piece: int = 64 << 20
    most: int = 0


class Piece(NamedTuple):
    """Bytes `start` to `end` of a log, compressed at `path`."""

    start: int
    end: int
    path: Path


class LogFile:
    """The log at `path`. One process at a time packs and shortens it; others may append to it and read it meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = f"{path.name}."

    def extent(self) -> LogExtent:
        """From which byte to which it is there."""
        first, lines, pieces = self._layout()
        return LogExtent(first, max(self._size() or 0, pieces[-1].end if pieces else 0), lines)

    def read(self, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes from `offset`; empty past the end, and where they were given up."""
        parts: list[bytes] = []
        while limit > 0 and (part := self._part(offset, limit)):
            parts.append(part)
            offset, limit = offset + len(part), limit - len(part)
        return b"".join(parts)

    def pack(self, piece: int, *, whole: bool = False) -> None:
        """Compress what is full; all of it where it is `whole` and worth it. Raises OSError, with nothing lost."""
        try:
            file = self._path.open("r+b", buffering=0)
        except (FileNotFoundError, NotADirectoryError):
            return
        with file:
            first, _, pieces = self._layout()
            closed, size = pieces[-1].end if pieces else first, os.fstat(file.fileno()).st_size
            while size - closed >= piece + PLAIN:
                closed = self._close(file, closed, _line_end(file, closed, closed + piece))
            if whole and size > closed and (closed or size >= PLAIN):
                closed = self._close(file, closed, size)
            if closed and os.fstat(file.fileno()).st_blocks * 512 > size - closed + PLAIN:
                _punch(file.fileno(), closed)
            fault("log piece out")

    def shorten(self, most: int) -> int:
        """Give up the oldest pieces of a log that is longer than `most` bytes; the first byte kept. Raises OSError."""
        first, lines, pieces = self._layout()
        end = self.extent().end
        gone = [piece for piece in pieces if end - piece.start > most]
        if gone:
            lines += sum(
                _unpacked(piece, at, BLOCK).count(b"\n")
                for piece in gone
                for at in range(piece.start, piece.end, BLOCK)
            )
            first = gone[-1].end
            _write(self._kept, json.dumps({"first": first, "lines": lines}).encode())
            fault("log piece given up")
        for path, _, end in self._there():
            if end <= first:
                path.unlink(missing_ok=True)
        return first

    def remove(self) -> None:
        """Take away the file of a log that is wholly in pieces, and to which nobody appends any more."""
        _, _, pieces = self._layout()
        if pieces and pieces[-1].end >= (self._size() or 0):
            self._path.unlink(missing_ok=True)

    @property
    def _kept(self) -> Path:
        return self._path.with_name(f"{self._path.name}.kept")

    def _size(self) -> int | None:
        """The length of the file; None where there is none."""
        try:
            return self._path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _there(self) -> Iterator[tuple[Path, int, int]]:
        """Every piece on disk, with the bytes that it holds."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self._path.parent) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(self._before) and (found := PIECE.fullmatch(name, len(self._before))):
                    yield Path(entry.path), int(found[1]), int(found[2])

    def _layout(self) -> tuple[int, int, list[Piece]]:
        """The first byte kept, the lines before it, and the pieces from there on, in order."""
        kept = {"first": 0, "lines": 0}
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            kept = json.loads(self._kept.read_bytes())
        pieces = sorted(Piece(start, end, path) for path, start, end in self._there() if start >= kept["first"])
        return kept["first"], kept["lines"], pieces

    def _part(self, offset: int, limit: int) -> bytes:
        """Some bytes from `offset` on. What was a hole when it was read is in a piece by then: read again, there."""
        size = self._size()
        if size is not None and offset >= size:
            return b""
        while True:
            before = first, _, pieces = self._layout()
            if offset < first:
                return b""
            piece = next((piece for piece in pieces if piece.start <= offset < piece.end), None)
            data = b""
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                data = self._plain(offset, limit) if piece is None else _unpacked(piece, offset, limit)
            if piece is not None and data:
                return data
            if self._layout() == before:
                return data

    def _plain(self, offset: int, limit: int) -> bytes:
        with self._path.open("rb", buffering=0) as file:
            there = os.fstat(file.fileno()).st_size - offset
            return os.pread(file.fileno(), min(limit, max(0, there)), offset)  # it takes memory for as much as is asked

    def _close(self, file: BinaryIO, start: int, end: int) -> int:
        """Compress these bytes of the file; where they end."""
        target = self._path.with_name(f"{self._path.name}.{start:015}-{end:015}.gz")
        draft = target.with_name(f".{target.name}")
        try:
            with draft.open("wb", buffering=0) as packed:
                _punch(packed.fileno(), 1)  # where that cannot be done, packing would only take more room
                for place in range(start, end, BLOCK):
                    packed.write(_member(os.pread(file.fileno(), min(BLOCK, end - place), place)))
                os.fsync(packed.fileno())
            fault("log piece written")
            draft.replace(target)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
        fault("log piece named")
        return end


def _line_end(file: BinaryIO, start: int, end: int) -> int:
    """Where the last line that is whole before `end` ends; `end`, where there is no such line near."""
    near = max(start, end - BLOCK)
    found = os.pread(file.fileno(), end - near, near).rfind(b"\n")
    return near + found + 1 if found >= 0 else end


def _member(data: bytes) -> bytes:
    """A whole gzip member that holds `data` and says how long it is itself."""
    engine = zlib.compressobj(wbits=-15)
    body = engine.compress(data) + engine.flush()
    size = GZIP.size + len(body) + TRAILER.size
    return GZIP.pack(*HEAD, size) + body + TRAILER.pack(zlib.crc32(data), len(data))


def _unpacked(piece: Piece, offset: int, limit: int) -> bytes:
    """Up to `limit` of a piece's bytes from `offset` of the log on, of one block. Raises FileNotFoundError."""
    skip, begin = divmod(offset - piece.start, BLOCK)
    size = min(BLOCK, piece.end - piece.start - skip * BLOCK)
    try:
        data = _block(piece.path, skip)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError):
        data = b""
    return (data if len(data) == size else _in_place_of(piece, size))[begin : begin + limit]


def _block(path: Path, skip: int) -> bytes:
    """What a piece holds in the block after the first so many. Raises ValueError where it is damaged, and OSError."""
    with path.open("rb") as file:
        for _ in range(skip):
            file.seek(_rest(file), os.SEEK_CUR)
        packed = file.read(_rest(file))
    try:
        data = zlib.decompress(packed[: -TRAILER.size], wbits=-15)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if TRAILER.pack(zlib.crc32(data), len(data)) != packed[-TRAILER.size :]:
        raise ValueError("its checksum is another")
    return data


def _rest(file: BinaryIO) -> int:
    """How long the member is that begins here, without its header. Raises ValueError where none does."""
    head = file.read(GZIP.size)
    if len(head) < GZIP.size or GZIP.unpack(head)[:-1] != HEAD:
        raise ValueError("a block begins with something else")
    return max(0, int(GZIP.unpack(head)[-1]) - GZIP.size)


def _in_place_of(piece: Piece, size: int) -> bytes:
    """As many bytes as cannot be read, with a line that says so."""
    told = f"[{size:,} bytes of this log cannot be read: {piece.path.name} is damaged]".encode()
    return b"\n" + told.rjust(size - 2, b"\0") + b"\n" if len(told) + 2 <= size else b"\n" * size


def _punch(descriptor: int, end: int) -> None:
    """Give the room of a file's first bytes back; its length stays. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, PUNCH, ctypes.c_long(0), ctypes.c_long(end)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)
