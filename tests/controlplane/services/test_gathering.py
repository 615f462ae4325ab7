from __future__ import annotations

import asyncio
from typing import Any

from controlplane.domain.errors import NotFound
from controlplane.services import metrics
from controlplane.services.context import Context
from controlplane.services.gathering import Gathering
from controlplane.services.views import RunView
from controlplane.store.points import Heard


def point(seq: int) -> dict[str, Any]:
    return {"seq": seq, "step": seq, "time": float(seq)}


def test_of_reports_together_one_that_has_no_run_fails_alone(context: Context, run: RunView) -> None:
    async def all_of_them() -> list[Any]:
        gathering = Gathering(context)
        reports = [
            (run.id, 1, [point(1)]),
            ("run_0", 1, [point(1)]),
            (run.id, 2, [point(1)]),
            (run.id, 1, [point(1), point(2)]),
        ]
        return await asyncio.gather(*(gathering.add(*one) for one in reports), return_exceptions=True)

    first, no_run, no_attempt, last = asyncio.run(all_of_them())
    assert (first, last) == (Heard(1, 0), Heard(2, 0))
    assert (str(no_run), str(no_attempt)) == (str(NotFound("run", "run_0")), str(NotFound("attempt", 2)))
    assert [one["seq"] for one in metrics.points_after(context, run.id)] == [1, 2]


def test_who_reports_alone_waits_for_nobody(context: Context, run: RunView) -> None:
    async def several() -> list[float]:
        gathering, loop = Gathering(context), asyncio.get_running_loop()
        waits: list[float] = []
        later = loop.call_later

        def noted(delay: float, *rest: Any) -> asyncio.TimerHandle:
            waits.append(delay)
            return later(delay, *rest)

        loop.call_later = noted  # type: ignore[assignment]
        for seq in range(1, 4):
            await gathering.add(run.id, 1, [point(seq)])
        return waits

    assert asyncio.run(several()) == [0, 0, 0]


def test_one_who_waits_no_more_takes_nothing_from_the_others(context: Context, run: RunView) -> None:
    async def two() -> Heard:
        gathering = Gathering(context)
        gone = asyncio.create_task(gathering.add(run.id, 1, [point(1)]))
        stays = asyncio.create_task(gathering.add(run.id, 1, [point(1), point(2)]))
        await asyncio.sleep(0)
        gone.cancel()
        return await stays

    assert asyncio.run(two()) == Heard(2, 0)
