"""Which source each sequence of a run comes from: `web:0.7,code:0.3`, in exact proportions at every place.

Why: nothing of a mixture's order is stored either. The sources of one period are found by Balinski and Young's quota
method (1975), so that of any n sequences each source gives its part of n, rounded down or up; later periods repeat it.
A source whose epochs are capped leaves when they are read, and the others share its part. It must not know what a
source holds. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Phase:
    """Sequences from `start` to `end` (None: for ever), among sources that have given `given` before."""

    start: int
    end: int | None
    given: Places  # a source
    counts: Places  # of a source in a period
    order: Places  # the source of each place in a period
    turn: Places  # how many of its source came before it in the period

    @classmethod
    def from_place(cls, start: int, weights: Sequence[int], given: Places, limits: Sequence[int]) -> Phase:
        """The phase that begins at a place, of sources with a weight above 0, and lasts until one reaches its limit."""
        order, counts = quota_order(weights), np.array(weights, np.int64)
        turn = np.empty_like(order)
        for source in range(len(weights)):
            turn[order == source] = np.arange(weights[source])
        ends = []
        for source, limit in enumerate(limits):
            if limit and weights[source]:
                periods, last = divmod(limit - int(given[source]) - 1, weights[source])
                at = np.flatnonzero((order == source) & (turn == last))[0]
                ends.append(start + periods * len(order) + int(at) + 1)
        return cls(start, min(ends, default=None), given, counts, order, turn)

    def take(self, places: Places) -> tuple[Places, Places]:
        """The source of each place, and how many sequences that source has given before."""
        periods, at = (places - self.start) // len(self.order), (places - self.start) % len(self.order)
        source = self.order[at]
        number: Places = self.given[source] + periods * self.counts[source] + self.turn[at]
        return source, number

    def given_at_end(self) -> Places:
        """What each source has given when the phase is over."""
        assert self.end is not None
        periods, rest = divmod(self.end - self.start, len(self.order))
        some: Places = np.bincount(self.order[:rest], minlength=len(self.counts))
        return self.given + periods * self.counts + some


class Schedule:
    """The sources of a run's sequences. `limits`: how many each may give in all (0: any number)."""

    def __init__(self, weights: Sequence[int], limits: Sequence[int]) -> None:
        left = list(weights)
        self.phases = [Phase.from_place(0, left, np.zeros(len(left), np.int64), limits)]
        while (end := self.phases[-1].end) is not None:
            given = self.phases[-1].given_at_end()
            left = [
                0 if limit and gave >= limit else part for part, limit, gave in zip(left, limits, given, strict=True)
            ]
            if not any(left):
                break
            self.phases.append(Phase.from_place(end, left, given, limits))

    @property
    def end(self) -> int | None:
        """How many sequences there are; None: any number."""
        return self.phases[-1].end

    def take(self, places: Places) -> tuple[Places, Places]:
        """The source of each place below `end`, and how many sequences that source has given before."""
        source, number = np.empty_like(places), np.empty_like(places)
        for phase in self.phases:
            inside = (places >= phase.start) & (True if phase.end is None else places < phase.end)
            source[inside], number[inside] = phase.take(places[inside])
        return source, number


def quota_order(weights: Sequence[int]) -> Places:
    """The sources of one period: at each place the one that is owed most, among those below their part, rounded up."""
    parts = np.array(weights, np.int64)
    total, given = int(parts.sum()), np.zeros(len(parts), np.int64)
    order = np.empty(total, np.int64)
    for place in range(total):
        owed = np.where(given * total < (place + 1) * parts, parts / (given + 1), -1.0)
        order[place] = chosen = int(owed.argmax())
        given[chosen] += 1
    return order
