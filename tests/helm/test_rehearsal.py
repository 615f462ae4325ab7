"""The script that an upgrade begins with, beside a control plane that holds the store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from controlplane.store.store import DATABASE, Store
from tests.helm.rendered import script


@pytest.fixture
def rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = script("rehearse")
    (tmp_path / "live").mkdir()
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(module, "LIVE", tmp_path / "live")
    monkeypatch.setattr(module, "COPY", tmp_path / "copy")
    return module


@pytest.fixture
def live(rehearsal: ModuleType) -> Iterator[Store]:
    with closing(Store(rehearsal.LIVE)) as store:
        yield store


def test_a_store_that_is_held_is_copied_and_taken_up(rehearsal: ModuleType, live: Store) -> None:
    assert rehearsal.main() == 0
    with closing(Store(rehearsal.COPY)) as copy:
        assert copy.installation == live.installation


@pytest.mark.usefixtures("live")
def test_a_store_that_this_version_cannot_take_up_is_said(
    rehearsal: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(rehearsal.LIVE / DATABASE)) as newer, newer:
        newer.execute("UPDATE alembic_version SET version_num = '9999'")
    assert rehearsal.main() == 1
    told = capsys.readouterr().err
    assert "9999" in told
    assert "the one that runs serves on" in told


def test_before_the_first_start_there_is_nothing_to_take_up(rehearsal: ModuleType) -> None:
    assert rehearsal.main() == 0
    assert not any(rehearsal.COPY.iterdir())
