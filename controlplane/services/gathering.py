"""Reports that come at nearly the same time, given to the store as one: a commit costs more than their points.

It works in the event loop. Who reports alone waits for nobody; where others do too, a report waits for `GATHER_S` at
most, which nobody sees: trainers do not wait for the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from controlplane.domain.errors import NotFound
from controlplane.services import metrics
from controlplane.services.context import Context
from controlplane.store.points import Heard, Report

GATHER_S = 0.02
Waiting = tuple[Report, asyncio.Future[Heard | NotFound]]


class Gathering:
    """Gathers the reports of one app."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waiting: list[Waiting] = []
        self._last = ("", 0.0)  # whose report came last, and when

    async def add(self, run_id: str, attempt: int, points: Sequence[Mapping[str, Any]]) -> Heard:
        """As `metrics.add_metrics`, of some points."""
        report = Report(run_id, attempt, points)
        loop, (last, moment) = asyncio.get_running_loop(), self._last
        now = loop.time()
        self._last = (report.run_id, now)
        heard: asyncio.Future[Heard | NotFound] = loop.create_future()
        self._waiting.append((report, heard))
        if len(self._waiting) == 1:
            others = report.run_id != last and now < moment + GATHER_S
            loop.call_later(GATHER_S if others else 0, self._store)
        return metrics.acknowledged(await heard)

    def _store(self) -> None:
        waiting, self._waiting = self._waiting, []
        loop = asyncio.get_running_loop()
        try:
            stored = metrics.add_all(self._context, [report for report, _ in waiting])
        except Exception as error:  # noqa: BLE001 - whatever it was, each who waits must hear of it
            stored = Future()
            stored.set_exception(error)
        stored.add_done_callback(lambda done: loop.call_soon_threadsafe(_answer, waiting, done))


def _answer(waiting: list[Waiting], stored: Future[list[Heard | NotFound]]) -> None:
    """Tell each what became of its report; but who has gone."""
    failure = stored.exception()
    for at, (_, heard) in enumerate(waiting):
        if heard.done():
            continue
        if failure is not None:
            heard.set_exception(failure)
        else:
            heard.set_result(stored.result()[at])
