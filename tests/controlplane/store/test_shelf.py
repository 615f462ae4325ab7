"""A shelf is a shelf: a folder, and the store on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from controlplane.clusters.shelf import Folder, Shelf
from controlplane.domain.errors import Superseded
from controlplane.store import shelf as module
from controlplane.store.leadership import take
from controlplane.store.shelf import StoreShelf
from controlplane.store.store import Store
from controlplane.store.tables import Part
from tests.controlplane.postgres import ON_SQLITE


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
def test_short_lines_share_a_part_and_a_file_has_a_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 5000)
    held = StoreShelf(store)
    for _ in range(600):
        held.append("run/log", b"step 1 ok\n")
    with store.read() as session:
        assert session.scalar(select(func.count()).select_from(Part)) == 1
    assert held.read("run/log") == b"step 1 ok\n" * 500
    held.append("other/log", b"x" * 6000)
    assert held.read("other/log") == b"x" * 5000 + module.CUT


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
