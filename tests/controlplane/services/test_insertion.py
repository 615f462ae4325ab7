"""Runs that are asked for at the same moment are stored at once, and each is answered as if it had been alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from controlplane.clusters.base import Capacity
from controlplane.domain.errors import FolderInUse, KeyReused, NameInUse
from controlplane.domain.spec import parse_spec
from controlplane.services import ground, runs
from controlplane.services.context import Context
from controlplane.services.insertion import Answer, Request, _holders, _of_keys, insert
from controlplane.services.runs import Asker, request_of
from controlplane.store.tables import Attempt, Event, Label, Outbox, Run
from controlplane.store.writer import Transaction
from tests.controlplane.memory_cluster import MemoryCluster
from tests.controlplane.postgres import ON_POSTGRES, planned

TABLES = (Run, Attempt, Outbox, Event, Label)


@contextmanager
def held(context: Context) -> Iterator[None]:
    """Let no write be done, so that those of the block wait, and are one group afterwards."""
    gate, began = threading.Event(), threading.Event()

    def hold(_transaction: Transaction, _of: Sequence[None]) -> list[bool | Exception]:
        began.set()
        return [gate.wait(30)]

    holder = context.store.together(hold, None)
    assert began.wait(30)
    yield
    gate.set()
    assert holder.result()


def asked(context: Context, key: str | None = None, **spec: object) -> Request:
    return request_of(context, parse_spec({"size": "tiny", **spec}), Asker("local", key, str(spec)))


def stored(context: Context, *requests: Request) -> list[Answer | Exception]:
    with held(context):
        waiting = [context.store.together(insert, (request, context.clock())) for request in requests]
    return [one.exception() or one.result() for one in waiting]  # type: ignore[misc]


def counted(context: Context) -> list[int | None]:
    with context.store.read() as session:
        return [session.scalar(select(func.count()).select_from(table)) for table in TABLES]


def test_requests_of_one_moment_are_all_stored_whole(context: Context) -> None:
    requests = [asked(context, key=f"key-{at}", labels={"at": str(at)}) for at in range(5)]
    answers = stored(context, *requests)
    assert [answer[0] for answer in answers if isinstance(answer, tuple)] == [request.id for request in requests]
    assert counted(context) == [5] * 5


def test_the_first_of_two_that_ask_for_one_name_or_folder_gets_it(context: Context) -> None:
    first, second = asked(context, name="one"), asked(context, name="one")
    third = replace(asked(context), resolved=first.resolved)
    made, name, folder, other = stored(context, first, second, third, asked(context))
    assert isinstance(made, tuple)
    assert isinstance(other, tuple)
    assert isinstance(name, NameInUse)
    assert isinstance(folder, FolderInUse)
    assert counted(context)[0] == 2


def test_one_key_makes_one_run_also_twice_in_a_moment_and_never_another(context: Context) -> None:
    first, again = asked(context, key="k", name="one"), asked(context, key="k", name="one")
    made, same, reused = stored(context, first, again, asked(context, key="k", name="two"))
    assert (made[0], same) == (first.id, (first.id, None))  # type: ignore[index]
    assert isinstance(reused, KeyReused)
    (later,) = stored(context, asked(context, key="k", name="one"))
    assert later == (first.id, None)


@ON_POSTGRES
@pytest.mark.parametrize("count", [1, 16, 64])
def test_keys_and_names_are_looked_up_one_by_one_also_by_plans_of_an_empty_table(context: Context, count: int) -> None:
    keys = planned(context.store, _of_keys(count))
    assert keys.count("Index Cond: ((principal = 'x'::text) AND (key = 'x'::text))") == count, keys
    holders = planned(context.store, _holders(count))
    assert "uq_runs_live_name" in holders
    assert "uq_runs_live_folder" in holders


def test_one_that_the_database_refuses_spoils_none_of_its_moment(context: Context) -> None:
    good, bad = asked(context, name="good"), replace(asked(context, name="bad"), queue=None)  # type: ignore[arg-type]
    fine, refused = stored(context, good, bad)
    assert isinstance(fine, tuple)
    assert isinstance(refused, Exception)
    assert counted(context)[:3] == [1, 1, 1]


def test_who_has_gone_before_it_was_written_asked_for_nothing(context: Context) -> None:
    with held(context):
        gone = context.store.together(insert, (asked(context, name="gone"), context.clock()))
        there = context.store.together(insert, (asked(context, name="there"), context.clock()))
        assert gone.cancel()
    there.result()
    with context.store.read() as session:
        assert list(session.scalars(select(Run.name))) == ["there"]


def test_what_a_spec_became_holds_for_a_second_and_for_its_kind_alone(
    context: Context, memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    capacity = memory.capacity

    def looked() -> Capacity:
        looks.append("look")
        return capacity()

    now = [100.0]
    monkeypatch.setattr(memory, "capacity", looked)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    one, two = (runs.create_run(context, parse_spec({"size": "tiny", "name": name}))[0] for name in ("one", "two"))
    after_two = len(looks)
    assert one.folder != two.folder
    assert one.resolved["config"]["out"] != two.resolved["config"]["out"]
    runs.create_run(context, parse_spec({"size": "tiny", "train": {"steps": 7}}))
    assert len(looks) > after_two
    known = len(looks)
    asyncio.run(runs.create_soon(context, parse_spec({"size": "tiny"})))
    assert len(looks) == known
    now[0] += ground.FRESH_S
    asyncio.run(runs.create_soon(context, parse_spec({"size": "tiny"})))
    assert len(looks) > known
