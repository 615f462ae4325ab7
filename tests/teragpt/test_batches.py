from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from teragpt.datasets.batches import AHEAD, Batch, Batches
from teragpt.datasets.crew import Crew

CPU = torch.device("cpu")


def numbered(number: int) -> Batch:
    return torch.tensor([number]), torch.tensor([number + 1])


def noted(read: list[int], fetch: Callable[[int], Batch] = numbered) -> Callable[[int], Batch]:
    def note(number: int) -> Batch:
        read.append(number)
        return fetch(number)

    return note


def test_batches_are_read_ahead_once_each_and_no_further_than_they_are_wanted() -> None:
    read: list[int] = []
    batches = Batches(noted(read), CPU)
    for number in range(20):
        assert [one.item() for one in batches.take(number)] == [number, number + 1]
        batches.prepare(number + 1, 20 - number - 1)
    assert read == list(range(20))


def test_a_step_that_is_computed_waits_for_no_reading() -> None:
    go, read = threading.Event(), []

    def slow(number: int) -> Batch:
        read.append(number)
        assert number < 2 or go.wait(60)
        return numbered(number)

    batches = Batches(slow, CPU)
    batches.take(0)
    batches.prepare(1)  # and 2 to 8 behind it
    assert batches.take(1)[0].item() == 1
    go.set()
    for number in range(2, 5):
        assert batches.take(number)[0].item() == number
        batches.prepare(number + 1)


def test_an_error_comes_when_its_batch_is_wanted() -> None:
    def bad(number: int) -> Batch:
        if number == 3:
            raise ConnectionError("gone")
        return numbered(number)

    batches = Batches(bad, CPU)
    for number in range(2):
        batches.take(number)
        batches.prepare(number + 1)
    batches.take(2)
    with pytest.raises(ConnectionError, match="gone"):
        batches.prepare(3)


def test_a_rewind_drops_what_was_read_ahead() -> None:
    batches = Batches(numbered, CPU)
    batches.take(0)
    batches.prepare(1)
    assert batches.take(50)[0].item() == 50
    assert not batches.reading
    batches.prepare(51)
    assert set(batches.reading) == set(range(52, 51 + AHEAD))


def test_a_crew_works_side_by_side_and_again_in_a_forked_process() -> None:
    crew = Crew(2, "test")
    together = threading.Barrier(2)
    assert sorted(one.result(60) for one in [crew.do(lambda: together.wait(60)) for _ in range(2)]) == [0, 1]
    crew.started = -1  # as a forked process finds it, which has none of the threads
    assert crew.do(lambda: 7).result(60) == 7
