"""Pauses of runs that could not be reconciled."""

from __future__ import annotations

from controlplane.reconcile.pace import Pace
from controlplane.reconcile.retries import Retries


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pauses_grow_from_a_second_to_a_minute_and_are_not_all_the_same() -> None:
    retries = Retries(Pace(), Clock())
    pauses = [retries.failed("a") for _ in range(50)]
    for pause, longest in zip(pauses, [2, 4, 8, 16, 32, *[60] * 45], strict=True):
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) > 40


def test_a_run_is_due_once_its_own_pause_is_over_and_begins_anew_after_it_went_well() -> None:
    clock = Clock()
    retries = Retries(Pace(), clock)
    for _ in range(8):
        retries.failed("often")
    retries.failed("once")
    assert retries.due() == set()
    clock.now = 2.0
    assert retries.due() == {"once"}
    clock.now = 60.0
    assert retries.due() == {"once", "often"}
    for run in ("once", "often"):
        retries.forget(run)
    assert retries.due() == set()
    assert retries.failed("often") <= 2.0
