from __future__ import annotations

from datetime import UTC, datetime

import pytest

from controlplane.domain.spec import parse_spec
from controlplane.services import runs
from controlplane.services.context import Context
from controlplane.services.usage import usage
from controlplane.store.tables import Attempt
from controlplane.store.writer import Transaction
from tests.controlplane.memory_cluster import Clock, MemoryCluster

HOUR = 3600.0


@pytest.fixture
def memory() -> MemoryCluster:
    return MemoryCluster(gpus=4)


def used(context: Context, start: float, end: float | None, *, user: str, gpus: int, **labels: str) -> None:
    """A run whose only attempt ran between two hours of the clock's day."""
    compute = {"gpus_per_node": gpus, "processes_per_node": max(1, gpus), "cpus_per_node": 2}
    spec = parse_spec({"size": "tiny", "compute": compute, "labels": labels})
    run = runs.create_run(context, spec, principal=user)[0]
    base = 1_800_000_000.0

    def job(transaction: Transaction) -> None:
        attempt = transaction.session.get_one(Attempt, (run.id, 1))
        attempt.started_at = base + start * HOUR
        attempt.finished_at = None if end is None else base + end * HOUR

    context.store.write(job)


def at(hour: float) -> datetime:
    return datetime.fromtimestamp(1_800_000_000.0 + hour * HOUR, UTC)


def test_hours_are_summed_by_user_size_and_label_within_a_stretch_of_time(context: Context, clock: Clock) -> None:
    used(context, 0, 2, user="ann", gpus=4, team="lm")
    used(context, 1, None, user="ann", gpus=2, team="vision")
    used(context, 1, 3, user="bob", gpus=1)
    runs.create_run(context, parse_spec({"size": "tiny"}), principal="eve")  # it never ran
    clock.sleep(4 * HOUR)

    def told(by: str, **when: datetime) -> list[tuple[str | None, float, float]]:
        items = usage(context, by, **when).items
        return [(one.key, round(one.gpu_hours, 6), round(one.cpu_core_hours, 6)) for one in items]

    assert told("user") == [("ann", 14.0, 10.0), ("bob", 2.0, 4.0)]
    assert told("size") == [("tiny", 16.0, 14.0)]
    assert told("label:team") == [("lm", 8.0, 4.0), ("vision", 6.0, 6.0), (None, 2.0, 4.0)]
    assert told("label:absent") == [(None, 16.0, 14.0)]
    assert told("user", since=at(1.5), until=at(2.5)) == [("ann", 4.0, 3.0), ("bob", 1.0, 2.0)]
    assert told("user", until=at(0)) == []
    assert told("user", since=at(5)) == []
    whole = usage(context)
    assert (whole.total.gpu_hours, whole.total.runs, whole.total.attempts) == (16.0, 3, 3)
    assert whole.until == at(4)
    assert usage(context, until=at(9)).until == at(4)


def test_an_attempt_during_which_the_clock_was_set_back_takes_nothing_off_the_others(
    context: Context, clock: Clock
) -> None:
    used(context, 0, 1, user="ann", gpus=1)
    used(context, 3, 2, user="ann", gpus=1)
    clock.sleep(4 * HOUR)
    assert (usage(context).total.gpu_hours, usage(context).total.attempts) == (1.0, 2)
