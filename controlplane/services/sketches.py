"""Long curves of runs that go on, for drawing: the lowest and highest points of each stretch, kept and carried on.

The points of a run that goes on lie in rows, too many to be read for each picture. A sketch is made of all of them once
and then of what has come since; a restart of this process forgets it. It holds nothing that the store does not, and
where points may have come in between those that it has seen, it is made anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import select
from sqlalchemy.orm import Session

from controlplane.store.history import DRAWN, STRETCHES, points_of
from controlplane.store.points import newest_seq
from controlplane.store.store import Store
from controlplane.store.tables import Attempt

KEPT, MOST_KEYS = 16, 4  # sketches of a process, and the values of one: some MB each at most
Point = dict[str, Any]
Seqs = dict[int, int]


class Sketch:
    """The shape of a curve in the values `shape`: what it was made of is in `seqs`, the highest of each attempt."""

    def __init__(self, shape: Collection[str]) -> None:
        self.shape = tuple(shape)
        self.lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.seqs: Seqs = {}
        self._gaps = False
        self._width = 1
        self._cells: dict[tuple[int, str, int], Point] = {}
        self._first: Point | None = None
        self._begin()

    def _begin(self) -> None:
        self._last: Point | None = None  # which more may still come to, as an evaluation
        self._step = -1

    def points(self, session: Session, run_id: str, seqs: Seqs) -> list[Point] | None:
        """The points that keep the curve's shape, by step, once those up to `seqs` were taken in.

        None where no sketch can be made of it: steps went back within an attempt.
        """
        if self._gaps or not self._goes_on(seqs) or not self._carry_on(session, run_id, seqs):
            self._forget()
            if not self._make(session, run_id, seqs):
                self._forget()
                return None
        ends = [one for one in (self._first, self._last) if one is not None]
        unique = {(one["attempt"], one["seq"]): one for one in [*self._cells.values(), *ends]}
        return sorted(unique.values(), key=lambda one: (one["step"], one["attempt"], one["seq"]))

    def _goes_on(self, seqs: Seqs) -> bool:
        """Whether nothing but the newest attempt has come further since."""
        newest = max(seqs)
        earlier = {attempt: seq for attempt, seq in seqs.items() if attempt != newest}
        return bool(self.seqs) and earlier == {one: seq for one, seq in self.seqs.items() if one != newest}

    def _carry_on(self, session: Session, run_id: str, seqs: Seqs) -> bool:
        """Take in what the newest attempt has added; False where it has gone back."""
        newest = max(seqs)
        for point in points_of(session, run_id, after=(newest, self.seqs.get(newest, 0))):
            if point["step"] < self._step or not self._take(point):
                return False
        self.seqs = dict(seqs)
        return True

    def _make(self, session: Session, run_id: str, seqs: Seqs) -> bool:
        """Take in everything, from the newest attempt back: each step of the latest attempt that reached it."""
        low: int | None = None
        high, last, steps = 0, None, -1
        for attempt in sorted(seqs, reverse=True):
            begun = None
            self._begin()
            for point in _of_attempt(session, run_id, attempt):
                if low is not None and low <= point["step"] <= high:
                    self._count(point)
                    continue
                begun = point["step"] if begun is None else begun
                if point["step"] < self._step or not self._take(point):
                    return False
            if begun is not None:
                low, high = begun if low is None else min(low, begun), max(high, self._step)
            done = last if self._step > steps else self._last
            if done is not None:
                self._settle(done)
            if self._step > steps:
                last, steps = self._last, self._step
        self._last, self._step = last, steps
        self.seqs = dict(seqs)
        return True

    def _take(self, point: Point) -> bool:
        """Take in a point; those of one step that follow each other are one."""
        self._count(point)
        last = self._last
        if last is not None and (last["step"], last["attempt"]) == (point["step"], point["attempt"]):
            self._last = {**last, **point}
            return True
        if last is not None and last["step"] == point["step"]:
            return False
        if last is not None:
            self._settle(last)
        self._last, self._step = point, point["step"]
        return True

    def _count(self, point: Point) -> None:
        """A `seq` that is left out may still come."""
        self._gaps |= point["seq"] != self.seqs.get(point["attempt"], 0) + 1
        self.seqs[point["attempt"]] = point["seq"]

    def _settle(self, point: Point) -> None:
        """Nothing more comes to this point."""
        if self._first is None or point["step"] < self._first["step"]:
            self._first = point
        for key in self.shape:
            self._keep(point, key)
        while point["step"] // self._width >= 2 * STRETCHES:
            self._width *= 2
            before, self._cells = self._cells, {}
            for (_, key, _), kept in before.items():
                self._keep(kept, key)

    def _keep(self, point: Point, key: str) -> None:
        value = point.get(key)
        if not isinstance(value, int | float):
            return
        for sign in (-1, 1):
            place = (point["step"] // self._width, key, sign)
            there = self._cells.get(place)
            if there is None or sign * value > sign * there[key]:
                self._cells[place] = point


def sketched(store: Store, session: Session, run_id: str, shape: Collection[str], stretches: int) -> list[Point] | None:
    """The points of a long curve that keep its `shape` in so many stretches; None where it must be read whole."""
    numbers = session.scalars(select(Attempt.number).where(Attempt.run_id == run_id))
    seqs = {number: seq for number in numbers if (seq := newest_seq(session, run_id, number))}
    if stretches > STRETCHES or len(shape) > MOST_KEYS or sum(seqs.values()) <= DRAWN:
        return None
    sketch = _sketch_of(store, run_id, shape)
    with sketch.lock:
        return sketch.points(session, run_id, seqs)


def _of_attempt(session: Session, run_id: str, attempt: int) -> Iterator[Point]:
    for point in points_of(session, run_id, after=(attempt, 0)):
        if point["attempt"] != attempt:
            return
        yield point


_sketches: WeakKeyDictionary[Store, OrderedDict[tuple[str, tuple[str, ...]], Sketch]] = WeakKeyDictionary()
_sketches_lock = threading.Lock()


def _sketch_of(store: Store, run_id: str, shape: Collection[str]) -> Sketch:
    with _sketches_lock:
        known = _sketches.setdefault(store, OrderedDict())
        key = (run_id, tuple(shape))
        sketch = known.setdefault(key, Sketch(shape))
        known.move_to_end(key)
        while len(known) > KEPT:
            known.popitem(last=False)
        return sketch
