"""A log is read as it was written, whatever of it was compressed, taken out or given up, whatever died meanwhile."""

from __future__ import annotations

import ctypes
import errno
import gzip
import os
import random
import signal
import threading
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane import faults
from controlplane.clusters import pieces
from controlplane.clusters.pieces import PLAIN, LogFile
from controlplane.domain.logs import LogExtent
from tests.cluster.chaos.control import CALL

PIECE = 128 << 10
KEEP_SIZE = 1  # of fallocate(2)
POINTS = CALL.findall(Path(pieces.__file__).read_text("utf-8"))


def lines(count: int, seed: int = 0) -> bytes:
    chance = random.Random(seed)
    return b"".join(b"step %d | loss %.6f\n" % (step, chance.random()) for step in range(count))


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def test_full_pieces_leave_the_file_and_every_byte_keeps_its_place(tmp_path: Path) -> None:
    path, text = tmp_path / "log", lines(30_000)
    append(path, text)
    held = path.stat().st_blocks
    log = LogFile(path)
    log.pack(PIECE)
    assert path.stat().st_size == len(text)
    assert path.stat().st_blocks < held / 2
    closed = [path for path in tmp_path.iterdir() if path.suffix == ".gz"]
    assert sum(each.stat().st_size for each in closed) < len(text) / 2
    whole = b"".join(gzip.decompress(each.read_bytes()) for each in sorted(closed))
    assert text.startswith(whole)
    assert whole.endswith(b"\n")
    assert len(text) - len(whole) < PIECE + PLAIN + 100
    assert log.read(0, 1 << 40) == text
    for offset, limit in (
        (0, 5),
        (PIECE - 7, 20),
        (len(whole) - 3, 9),
        (len(text) - 4, 9),
        (len(text), 9),
        (1 << 40, 1),
    ):
        assert log.read(offset, limit) == text[offset : offset + limit]
    append(path, b"on it goes\n")
    assert log.read(len(text) - 4, 99) == text[-4:] + b"on it goes\n"
    assert log.extent() == LogExtent(0, len(text) + 11, 0)


def test_a_log_that_has_ended_is_compressed_whole_where_it_is_worth_it(tmp_path: Path) -> None:
    for name, text, left in (("small", lines(20), ["small"]), ("large", lines(9_000) + b"half", [])):
        path = tmp_path / name / name
        path.parent.mkdir()
        append(path, text)
        log = LogFile(path)
        log.pack(PIECE, whole=True)
        log.remove()
        log.pack(PIECE, whole=True)
        assert [each for each in names(path) if each == name] == left
        assert (log.read(0, 1 << 40), log.extent().end) == (text, len(text))
        assert log.read(len(text) - 4, 9) == text[-4:]
        assert log.read(len(text), 9) == b""


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    parts=st.lists(st.tuples(st.binary(max_size=30), st.integers(1, 9000)), min_size=1, max_size=6),
    reads=st.lists(st.tuples(st.integers(0, 900_000), st.integers(0, 300_000)), max_size=8),
    whole=st.booleans(),
)
def test_any_bytes_are_read_as_they_were_written(
    tmp_path: Path, parts: list[tuple[bytes, int]], reads: list[tuple[int, int]], whole: bool
) -> None:
    for left in tmp_path.iterdir():
        left.unlink()
    path, text = tmp_path / "log", b""
    log = LogFile(path)
    for data, times in parts:
        append(path, data * times)
        text += data * times
        log.pack(PIECE)
    log.pack(PIECE, whole=whole)
    for offset, limit in [(0, 1 << 40), *reads]:
        assert log.read(offset, limit) == text[offset : offset + limit]


def test_beyond_the_limit_the_oldest_go_and_how_many_is_known(tmp_path: Path) -> None:
    path, text = tmp_path / "log", lines(40_000)
    append(path, text)
    log = LogFile(path)
    log.pack(PIECE)
    first = log.shorten(3 * PIECE)
    assert len(text) - 3 * PIECE <= first < len(text) - 2 * PIECE
    assert log.extent() == LogExtent(first, len(text), text[:first].count(b"\n"))
    assert text[first - 1 : first] == b"\n"
    assert (log.read(first, 1 << 40), log.read(first - 1, 9), log.read(0, 9)) == (text[first:], b"", b"")
    assert log.shorten(3 * PIECE) == first
    append(path, text)
    log.pack(PIECE)
    later = log.shorten(3 * PIECE)
    assert log.extent() == LogExtent(later, 2 * len(text), (text + text)[:later].count(b"\n"))


def test_a_file_with_more_room_than_bytes_has_nothing_to_give_back(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, b"step 1\n")
    with path.open("r+b") as file:
        length = ctypes.c_long(1 << 20)
        assert ctypes.CDLL(None).fallocate(file.fileno(), KEEP_SIZE, ctypes.c_long(0), length) == 0
    LogFile(path).pack(PIECE)
    assert path.read_bytes() == b"step 1\n"


def test_readers_and_a_writer_go_on_while_pieces_leave(tmp_path: Path) -> None:
    """Zeros of a hole are never taken for what was written."""
    path, text = tmp_path / "log", lines(60_000)
    path.touch()
    log, over = LogFile(path), threading.Event()

    def write() -> None:
        for start in range(0, len(text), 5000):
            append(path, text[start : start + 5000])
        over.set()

    def pack() -> None:
        while not over.is_set():
            log.pack(PLAIN)

    threads = [threading.Thread(target=write), threading.Thread(target=pack)]
    for thread in threads:
        thread.start()
    chance, place = random.Random(1), 0
    while not over.is_set() or place < len(text):
        data = log.read(place, 70_000)
        assert data == text[place : place + len(data)]
        place += len(data)
        back = chance.randrange(place + 1)
        data = log.read(back, 3000)
        assert data == text[back : back + len(data)]
    for thread in threads:
        thread.join()
    assert log.read(0, 1 << 40) == text


def life(path: Path) -> None:
    log = LogFile(path)
    log.pack(PIECE)
    log.shorten(4 * PIECE)
    log.pack(PIECE, whole=True)
    log.remove()


@pytest.mark.unmeasured
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("point", POINTS)
def test_kill_9_at_a_named_instant_loses_nothing(tmp_path: Path, point: str, count: int) -> None:
    path, text = tmp_path / "log", lines(40_000)
    append(path, text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            faults._armed = faults.Armed(f"{point}:{count}")
            life(path)
            code = 0
        finally:
            os._exit(code)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended == -signal.SIGKILL or (count > 1 and ended == 0)
    log = LogFile(path)
    there = log.extent()
    assert log.read(there.first, 1 << 40) == text[there.first :]
    assert there.end == len(text)
    life(path)
    last = log.extent()
    assert (last.lines, log.read(last.first, 1 << 40)) == (text[: last.first].count(b"\n"), text[last.first :])
    assert not [name for name in names(path) if name == "log" or name.startswith(".log.kept")]


def test_where_room_cannot_be_given_back_or_the_disk_is_full_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, text = tmp_path / "log", lines(20_000)
    append(path, text)

    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(pieces, "_punch", refuse)
    with pytest.raises(OSError, match="not supported"):
        LogFile(path).pack(PIECE)
    assert (names(path), LogFile(path).read(0, 1 << 40)) == (["log"], text)


@pytest.mark.parametrize("place", [0.5, 0.0, None])
def test_what_is_damaged_of_a_piece_is_told_in_its_place_and_the_rest_is_read(
    tmp_path: Path, place: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "BLOCK", 4096)
    path, text = tmp_path / "log", lines(20_000)
    append(path, text)
    LogFile(path).pack(PIECE)
    piece = sorted(tmp_path.glob("*.gz"))[1]
    begin, end = (int(part) for part in piece.name.split(".")[1].split("-"))
    data = bytearray(piece.read_bytes())
    if place is None:
        data = data[: len(data) // 2]
    else:
        data[int(len(data) * place)] ^= 255
    piece.write_bytes(data)
    read = LogFile(path).read(0, len(text))
    assert (len(read), read[:begin], read[end:]) == (len(text), text[:begin], text[end:])
    told = [line.lstrip(b"\0") for line in read[begin:end].split(b"\n") if b"cannot be read" in line]
    assert told[0] == b"[4,096 bytes of this log cannot be read: %s is damaged]" % piece.name.encode()
    blocks = -(-(end - begin) // 4096)
    assert len(told) == {0.5: 1, 0.0: blocks, None: len(told)}[place]
    assert 0 < len(told) <= blocks
    assert LogFile(path).shorten(PIECE) >= end


def test_there_is_nothing_where_there_is_no_log(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "none" / "log")
    log.pack(PIECE, whole=True)
    assert (log.read(0, 9), log.extent()) == (b"", LogExtent())
