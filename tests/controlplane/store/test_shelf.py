"""A shelf is a shelf: a folder, and the store on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from controlplane.clusters.pieces import Limits
from controlplane.clusters.shelf import Folder, Shelf
from controlplane.domain.errors import Superseded
from controlplane.domain.logs import LogExtent
from controlplane.store.leadership import take
from controlplane.store.shelf import StoreShelf
from controlplane.store.store import Store
from controlplane.store.tables import Part
from tests.controlplane.postgres import ON_SQLITE

MOST = 300_000


@pytest.fixture(params=["folder", "sqlite", "postgres"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    if request.param == "folder":
        yield Folder(tmp_path)
        return
    url = str(request.getfixturevalue("database")) if request.param == "postgres" else ""
    store = Store(tmp_path / "home", url)
    yield StoreShelf(store)
    store.close()


def test_what_is_appended_is_read_from_any_place(shelf: Shelf) -> None:
    for piece in (b"0123", b"", b"45", b"6" * 100_000, b"end"):
        shelf.append("run-1/pod.log", piece)
    assert shelf.size("run-1/pod.log") == 100_009
    assert shelf.read("run-1/pod.log", 2, 6) == b"234566"
    assert shelf.read("run-1/pod.log", 100_000) == b"666666end"
    assert shelf.read("run-1/pod.log", 100_009) == b""
    assert shelf.read("run-1/pod.log", 0, 1 << 40)[-4:] == b"6end"


def test_what_is_put_is_there_in_place_of_what_was(shelf: Shelf) -> None:
    shelf.put("run-1/object.json", b"first" * 1000)
    shelf.put("run-1/object.json", b"second")
    assert (shelf.read("run-1/object.json"), shelf.size("run-1/object.json")) == (b"second", 6)


def test_what_is_not_there_is_empty(shelf: Shelf) -> None:
    assert (shelf.read("nothing"), shelf.size("no/thing"), shelf.names("no")) == (b"", 0, [])
    shelf.remove("no")


def test_a_folder_is_listed_and_removed_alone(shelf: Shelf) -> None:
    for name in ("a_b/1.log", "a_b/2.log", "axb/1.log"):
        shelf.append(name, b"x")
    assert sorted(shelf.names("a_b")) == ["a_b/1.log", "a_b/2.log"]
    shelf.remove("a_b")
    assert (shelf.names("a_b"), shelf.read("a_b/1.log"), shelf.names("axb")) == ([], b"", ["axb/1.log"])


@ON_SQLITE
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pieces=st.lists(st.binary(max_size=40), max_size=20), offset=st.integers(0, 300), limit=st.integers(0, 300))
def test_any_pieces_are_read_as_one(store: Store, pieces: list[bytes], offset: int, limit: int) -> None:
    held = StoreShelf(store)
    held.remove("any")
    for piece in pieces:
        held.append("any/log", piece)
    assert held.read("any/log", offset, limit) == b"".join(pieces)[offset : offset + limit]


@ON_SQLITE
def test_short_lines_share_a_part(store: Store) -> None:
    held = StoreShelf(store)
    for _ in range(600):
        held.append("run/log", b"step 1 ok\n")
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Part)) == 1
    assert held.read("run/log") == b"step 1 ok\n" * 600


@pytest.fixture(params=["folder", "sqlite", "postgres"])
def limited(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    if request.param == "folder":
        yield Folder(tmp_path, Limits(piece=64 << 10, most=MOST))
        return
    url = str(request.getfixturevalue("database")) if request.param == "postgres" else ""
    store = Store(tmp_path / "home", url)
    yield StoreShelf(store, MOST)
    store.close()


def test_beyond_its_limit_a_log_loses_its_oldest_lines_and_says_how_many(limited: Shelf) -> None:
    text = b"".join(b"step %d | loss 3.1\n" % step for step in range(40_000))
    assert limited.tend("run/pod.log") == 0
    for start in range(0, len(text), 50_000):
        limited.append("run/pod.log", text[start : start + 50_000])
        limited.tend("run/pod.log")
    there = limited.extent("run/pod.log")
    assert (there.end, there.lines) == (len(text), text[: there.first].count(b"\n"))
    assert len(text) - MOST - (64 << 10) < there.first
    assert len(text) - there.first <= MOST
    assert text[there.first - 1 : there.first] == b"\n"
    assert limited.read("run/pod.log", there.first, 1 << 40) == text[there.first :]
    assert (limited.read("run/pod.log"), limited.read("run/pod.log", there.first - 1)) == (b"", b"")
    limited.append("run/pod.log", b"last\n")
    assert limited.tend("run/pod.log", over=True) == there.first
    assert limited.read("run/pod.log", there.first, 1 << 40) == text[there.first :] + b"last\n"
    assert limited.size("run/pod.log") == len(text) + 5
    limited.remove("run")
    assert limited.extent("run/pod.log") == LogExtent()


def test_postgres_keeps_parts_compressed(tmp_path: Path, database: str) -> None:
    store = Store(tmp_path / "home", database)
    held, text = StoreShelf(store), b"".join(b"step %d | loss 3.1 | 5,123 tokens/s\n" % step for step in range(20_000))
    held.append("run/pod.log", text)
    with store.read() as session:
        stored = session.scalar(select(func.sum(func.pg_column_size(Part.data))))
    store.close()
    assert stored is not None
    assert stored < len(text) / 2


def test_a_former_leader_puts_nothing_on_the_shelf(tmp_path: Path, database: str) -> None:
    one, other = Store(tmp_path / "one", database), Store(tmp_path / "other", database)
    try:
        first = take(one, "one", 600.0)
        assert first is not None
        first.end()
        assert take(other, "other", 600.0) is not None
        with pytest.raises(Superseded):
            StoreShelf(first).append("run/log", b"late\n")
        assert StoreShelf(other).read("run/log") == b""
    finally:
        one.close()
        other.close()
