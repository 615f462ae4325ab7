"""Threads that take turns: who is due is taken in time, by one of them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from controlplane.clusters.kubernetes.turns import Turns
from tests.controlplane.clusters.kubernetes.hands import eventually

MOST = 4


class Crew:
    """Threads that note what they take; `wakes` counts how often one of them looked at the queue."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.wakes = 0
        self.taken: list[str] = []
        self.late: list[float] = []
        self.threads: list[threading.Thread] = []
        self.hold = threading.Event()
        self.hold.set()
        self.turns = Turns[str](self.lock, self.spawn, self.clock)

    def clock(self) -> float:
        self.wakes += 1
        return time.monotonic()

    def spawn(self) -> None:
        if len(self.threads) < MOST:
            self.threads.append(threading.Thread(target=self.work, daemon=True))
            self.threads[-1].start()

    def put(self, what: str, after_s: float = 0.0) -> None:
        with self.lock:
            self.turns.put(what, time.monotonic() + after_s)

    def work(self) -> None:
        while True:
            with self.lock:
                taken = self.turns.take()
                if taken is None:
                    return
                self.late.append(time.monotonic() - taken[0])
                self.taken.append(taken[1])
            self.hold.wait(30)


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew()
    yield made
    made.hold.set()
    with made.lock:
        made.turns.end()
    for thread in made.threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in made.threads)


def test_everything_is_taken_once_in_the_order_of_its_time(crew: Crew) -> None:
    crew.hold.clear()
    for number in range(MOST):
        crew.put(f"first {number}")  # all of them are at work
    eventually(lambda: len(crew.taken) == MOST)
    crew.put("late", 0.05)
    crew.put("early", 0.01)
    crew.hold.set()
    eventually(lambda: len(crew.taken) == MOST + 2)
    assert Counter(crew.taken).most_common(1)[0][1] == 1
    assert crew.taken[-2:] == ["early", "late"]


def test_what_is_due_sooner_than_what_is_watched_for_is_not_late(crew: Crew) -> None:
    crew.put("much later", 3600)
    eventually(lambda: crew.threads)
    crew.put("soon", 0.02)
    eventually(lambda: crew.taken == ["soon"])


def test_a_thread_that_is_held_up_keeps_nobody_waiting(crew: Crew) -> None:
    crew.hold.clear()
    for number in range(MOST):
        crew.put(f"{number}", 0.01 * number)
    eventually(lambda: len(crew.taken) == MOST)


def test_one_thread_wakes_for_what_is_due_and_the_others_sleep(crew: Crew) -> None:
    crew.hold.clear()
    for number in range(MOST):
        crew.put(f"{number}")
    eventually(lambda: len(crew.taken) == MOST)
    crew.hold.set()  # now all are idle
    before = crew.wakes
    for number in range(50):
        crew.put(f"more {number}", 0.002 * number)
    eventually(lambda: len(crew.taken) == MOST + 50)
    assert crew.wakes - before < 4 * 50  # all four woke for each, it would be more
