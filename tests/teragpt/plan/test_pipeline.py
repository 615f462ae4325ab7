"""The trainer's own order of tasks, played through with sends that take their time."""

from __future__ import annotations

import pytest

from teragpt.parallelism.pipeline import BACKWARD, FORWARD, Task, order
from teragpt.plan.step import waits


def played(pp: int, chunks: int, count: int, send: float) -> float:
    """Seconds of a step whose micro-batches take 1 forward and 2 backward on each rank, and `send` between stages."""
    queues = [list(order(pp, chunks, count, rank, training=True)) for rank in range(pp)]
    last, free, ended = pp * chunks - 1, [0.0] * pp, dict[Task, float]()
    while any(queues):
        rank = next(rank for rank, queue in enumerate(queues) if queue and ready(queue[0], last, ended, send) >= 0)
        task = queues[rank].pop(0)
        begun = max(free[rank], ready(task, last, ended, send))
        free[rank] = ended[task] = begun + (1 if task.kind == FORWARD else 2) / chunks
    return max(free)


def ready(task: Task, last: int, ended: dict[Task, float], send: float) -> float:
    """When what a task takes is there; -1 where it has not been made."""
    if task == Task(FORWARD, 0, task.micro):
        return 0.0
    if task == Task(BACKWARD, last, task.micro):
        return ended.get(Task(FORWARD, last, task.micro), -1.0)
    before = task.stage + (-1 if task.kind == FORWARD else 1)
    made = ended.get(task._replace(stage=before))
    return -1.0 if made is None else made + send


@pytest.mark.parametrize(("pp", "chunks", "count"), [(2, 1, 6), (4, 1, 8), (8, 1, 16), (2, 2, 4), (4, 3, 8)])
def test_a_step_waits_for_as_many_sends_as_the_order_of_its_tasks_does(pp: int, chunks: int, count: int) -> None:
    without = played(pp, chunks, count, 0.0)
    assert without == pytest.approx(3 * (count + (pp - 1) / chunks))
    assert played(pp, chunks, count, 0.05) - without == pytest.approx(0.05 * waits(pp, chunks, count))
