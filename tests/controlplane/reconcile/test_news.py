"""What is new of an object's pods is stored in its place; what is stored of the others is neither read nor written."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, select, update

from controlplane.domain.errors import StoreUnavailable
from controlplane.reconcile import reconciler as reconciling
from controlplane.reconcile.apply import IN_PLACE, apply_simple
from controlplane.reconcile.decide import Decision, Look
from controlplane.reconcile.verdicts import object_lost
from controlplane.store.moves import add_attempt
from controlplane.store.store import Ledger
from controlplane.store.tables import Attempt, Run
from controlplane.store.writer import Transaction
from tests.controlplane.memory_cluster import MemoryCluster
from tests.controlplane.reconcile.conftest import Stage

NODES = 2 * IN_PLACE


@pytest.fixture
def memory() -> MemoryCluster:
    """With room for all of them."""
    return MemoryCluster(cpus=4 * NODES, memory=NODES << 34)


@pytest.fixture
def wide(stage: Stage) -> Stage:
    """A run of many pods that all run, and a look after that."""
    stage.ask(compute={"nodes": NODES}, train={"global_batch_tokens": 512 * NODES})
    stage.look()
    stage.memory.run(stage.object)
    stage.look(2)
    assert stage.run.phase == "running"
    return stage


def change(stage: Stage, ranks: list[int], **new: Any) -> None:
    """Have these pods be otherwise."""
    job = stage.memory.jobs[stage.object]
    pods = tuple(replace(pod, **new) if pod.rank in ranks else pod for pod in job.pods)
    stage.memory.jobs[stage.object] = replace(job, pods=pods)


def starting(stage: Stage, ranks: list[int]) -> None:
    change(stage, ranks, phase="Pending", reason="ContainerCreating")


def stored(stage: Stage) -> list[dict[str, Any]]:
    with stage.context.store.read() as session:
        return list(session.scalars(select(Attempt.pods)).one())


def phases(stage: Stage) -> list[tuple[int, str, str | None]]:
    return [(pod["rank"], pod["phase"], pod["reason"]) for pod in stored(stage)]


@pytest.mark.parametrize("several", [1, IN_PLACE, IN_PLACE + 1])
def test_what_is_new_is_stored_and_what_is_stored_is_not_read(wide: Stage, several: int) -> None:
    statements: list[str] = []
    ranks = random.Random(several).sample(range(NODES), several)
    starting(wide, ranks)
    event.listen(wide.context.store._engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    wide.reconciler.step(whole=False)
    read = [one for one in statements if one.startswith("SELECT") and "attempts.pods" in one]
    assert not read
    wanted = [
        (rank, *(("Pending", "ContainerCreating") if rank in ranks else ("Running", None))) for rank in range(NODES)
    ]
    assert phases(wide) == wanted


def test_pods_that_come_and_go_are_stored_as_a_look_at_everything_stores_them(wide: Stage) -> None:
    chance = random.Random(7)
    for _ in range(12):
        ranks = chance.sample(range(NODES), chance.randint(1, NODES))
        if chance.random() < 0.5:
            starting(wide, ranks)
        else:
            change(wide, ranks, phase="Running", reason=None)
        wide.reconciler.step(whole=False)
        kept = stored(wide)
        wide.restart()
        wide.look()
        assert stored(wide) == kept
        wide.look()


@pytest.mark.parametrize("why", ["its time has come", "nobody knows what was stored"])
def test_what_is_stored_is_read_again(wide: Stage, why: str) -> None:
    known = stored(wide)
    other = [{**pod, "node": "elsewhere"} for pod in known]
    wide.context.store.write(lambda transaction: transaction.session.execute(update(Attempt).values(pods=other)))
    wide.look()
    assert stored(wide) == other  # nothing has happened that it knows of
    if why == "nobody knows what was stored":
        wide.context.store.signals.everyone()
    else:
        wide.reconciler._reread_at = 0.0
    wide.reconciler.step(whole=False)
    assert stored(wide) == known


def test_news_that_could_not_be_stored_is_stored_by_the_next_look(wide: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> list[Look]:
        raise StoreUnavailable("away")

    starting(wide, [3])
    with monkeypatch.context() as patched:
        patched.setattr(reconciling, "apply_simple", away)
        with pytest.raises(StoreUnavailable):
            wide.reconciler.step(whole=False)
    assert phases(wide)[3] == (3, "Running", None)
    wide.reconciler.step(whole=False)
    assert phases(wide)[3] == (3, "Pending", "ContainerCreating")


def test_news_that_comes_while_a_run_is_cancelled_is_not_taken_for_stored(
    wide: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting(wide, [3])

    def late(store: Ledger, seen: Sequence[tuple[Look, Decision]]) -> list[Look]:
        wide.cancel()
        return apply_simple(store, seen)

    with monkeypatch.context() as patched:
        patched.setattr(reconciling, "apply_simple", late)
        wide.reconciler.step(whole=False)
    assert phases(wide)[3] == (3, "Running", None)
    wide.reconciler.step(whole=False)
    assert (wide.run.phase, phases(wide)[3]) == ("cancelling", (3, "Pending", "ContainerCreating"))


def test_an_attempt_that_another_process_began_meanwhile_is_not_judged_by_the_object_before(
    wide: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(transaction: Transaction) -> None:
        add_attempt(transaction, transaction.session.get_one(Run, wide.id), 2, now=0.0, due_at=1e12)

    def late(look: Look) -> Decision | None:
        if look.attempt.number == 1:
            wide.context.store.write(begin)
        return Decision(verdict=object_lost(look.attempt.object_name), ends=True, deletes=True)

    starting(wide, [3])
    monkeypatch.setattr(reconciling, "decide", late)
    wide.reconciler.step(whole=False)
    assert [attempt.reason for attempt in wide.attempts] == [None, None]


def test_a_pod_in_the_place_of_another_is_seen(wide: Stage) -> None:
    starting(wide, [3])
    wide.reconciler.step(whole=False)
    change(wide, [5], uid="another")
    wide.reconciler.step(whole=False)
    assert wide.attempt.reason == "PodLost"


def test_a_pod_that_fails_beside_news_fails_the_attempt_with_all_pods_stored(wide: Stage) -> None:
    starting(wide, [3])
    wide.reconciler.step(whole=False)
    change(wide, [4], phase="Failed", exit_code=1, reason="Error")
    starting(wide, [6])
    wide.reconciler.step(whole=False)
    assert (wide.attempt.reason, wide.attempt.exit_code) == ("Crash", 1)
    assert [rank for rank, phase, _ in phases(wide) if phase == "Pending"] == [3, 6]


def test_a_run_that_is_cancelled_meanwhile_is_looked_at_whole(wide: Stage) -> None:
    starting(wide, [3])
    wide.cancel()
    wide.reconciler.step(whole=False)
    assert wide.run.phase == "cancelling"
    assert phases(wide)[3] == (3, "Pending", "ContainerCreating")
