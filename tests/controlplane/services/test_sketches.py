"""A long curve of a run that goes on: what its sketch shows is what all of its points would show."""

from __future__ import annotations

import random
from typing import Any

import pytest

from controlplane.services import metrics, sketches
from controlplane.services.context import Context
from controlplane.services.metrics import add_metrics, curve
from controlplane.services.views import RunView
from controlplane.store.history import points_of
from controlplane.store.moves import add_attempt, get_run
from tests.controlplane.postgres import ON_SQLITE

MOST = 20


@pytest.fixture(autouse=True)
def long_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketches, "DRAWN", 10)
    monkeypatch.setattr(sketches, "STRETCHES", 16)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many points each picture has read."""
    counts: list[int] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        counts.append(0)
        for one in points_of(*arguments, **named):
            counts[-1] += 1
            yield one

    monkeypatch.setattr(sketches, "points_of", counted)
    monkeypatch.setattr(metrics, "points_of", counted)
    return counts


def points(first: int, last: int, *, ahead: int = 0) -> list[dict[str, Any]]:
    noise = random.Random(first)
    return [
        {"seq": seq, "step": seq + ahead, "time": float(seq), "loss": noise.gauss(3, 1), "lr": 0.1 * seq}
        for seq in range(first, last + 1)
    ]


def attempt(context: Context, run: RunView, number: int) -> None:
    context.store.write(lambda t: add_attempt(t, get_run(t, run.id), number, 1.0, 1.0))


def drawn(context: Context, run: RunView, *keys: str) -> list[dict[str, Any]]:
    """A picture of the curve, which keeps what the whole curve has: its ends, and its lowest and highest loss."""
    whole, few = curve(context, run.id, keys=keys), curve(context, run.id, keys=keys, downsample=MOST)
    assert len(few) <= MOST
    assert all(one in whole for one in few)
    losses = [one["loss"] for one in whole if "loss" in one]
    assert [few[0], few[-1]] == [whole[0], whole[-1]]
    assert {min(losses), max(losses)} <= {one.get("loss") for one in few}
    return few


@ON_SQLITE
def test_a_picture_reads_what_has_come_since_the_last_one_alone(
    context: Context, run: RunView, read: list[int]
) -> None:
    for first in range(1, 500, 50):
        add_metrics(context, run.id, 1, points(first, first + 49))
        drawn(context, run)
        drawn(context, run, "loss")
    read.clear()
    curve(context, run.id, downsample=MOST)
    curve(context, run.id, keys=["loss"], downsample=MOST)
    assert read == [0, 0]
    assert {*drawn(context, run, "loss")[0]} == {"attempt", "seq", "step", "time", "loss"}


@ON_SQLITE
def test_an_evaluation_that_comes_later_joins_its_step(context: Context, run: RunView) -> None:
    add_metrics(context, run.id, 1, points(1, 40))
    drawn(context, run)
    add_metrics(context, run.id, 1, [{"seq": 41, "step": 40, "time": 41.0, "val_loss": 2.5}])
    assert drawn(context, run)[-1]["val_loss"] == 2.5
    add_metrics(context, run.id, 1, points(42, 60, ahead=-1))
    assert 2.5 in [one.get("val_loss") for one in drawn(context, run)]


def test_a_later_attempt_overrules_the_steps_that_it_reaches(context: Context, run: RunView) -> None:
    add_metrics(context, run.id, 1, points(1, 60))
    drawn(context, run)
    attempt(context, run, 2)
    for first in range(1, 60, 7):  # from step 41 on, past the end of the first one
        add_metrics(context, run.id, 2, points(first, first + 6, ahead=40))
        drawn(context, run)
    assert curve(context, run.id, downsample=MOST)[-1]["attempt"] == 2


@ON_SQLITE
@pytest.mark.parametrize("late", [30, 31])
def test_points_that_come_in_between_are_seen(context: Context, run: RunView, late: int) -> None:
    every = points(1, 60)
    every[late - 1]["loss"] = -100.0
    add_metrics(context, run.id, 1, [*every[: late - 1], *every[late:]])
    drawn(context, run)
    add_metrics(context, run.id, 1, [every[late - 1]])
    assert -100.0 in [one["loss"] for one in drawn(context, run)]


@ON_SQLITE
def test_late_points_of_an_earlier_attempt_are_seen(context: Context, run: RunView) -> None:
    add_metrics(context, run.id, 1, points(1, 30))
    attempt(context, run, 2)
    add_metrics(context, run.id, 2, points(1, 5, ahead=10))
    drawn(context, run)
    add_metrics(context, run.id, 1, points(31, 50))
    assert drawn(context, run)[-1]["step"] == 50


@ON_SQLITE
def test_steps_that_go_back_within_an_attempt_are_drawn_from_all_points(context: Context, run: RunView) -> None:
    add_metrics(context, run.id, 1, points(1, 40))
    add_metrics(context, run.id, 1, points(41, 60, ahead=-30))
    drawn(context, run)


@ON_SQLITE
def test_no_more_sketches_are_kept_than_fit(context: Context, run: RunView) -> None:
    add_metrics(context, run.id, 1, points(1, 40))
    for number in range(2 * sketches.KEPT):
        curve(context, run.id, keys=[f"k{number}"], downsample=MOST)
    assert len(sketches._sketches[context.store]) == sketches.KEPT
